"""A version that is tried beside the one that serves: share, figures, gates, promotion, drop."""

from __future__ import annotations

import pytest

from cloud.db.tables import AssignmentEvent, Metric, Rollout
from cloud.errors import Conflict, NotFound
from cloud.orchestrator import trials
from cloud.orchestrator.figures import comparison
from cloud.orchestrator.stored import load
from edge_agent.wire.manifest import trial_path
from edge_agent.wire.messages import ComparisonReport, MetricsReport, UpdateReport
from fleet.client.trial_schemas import PromoteIn

from .conftest import MODEL

DEVICES = ("d0", "d1")


@pytest.fixture
def tried(plane) -> str:
    """Version 1 is on two devices, and version 2 is tried there."""
    plane.enrol(*DEVICES)
    plane.release(1)
    plane.complete(1, *DEVICES)
    plane.release(2)
    plane.now += 1
    trial = plane.start(2, mode="ab", share=0.1)
    plane.turn()
    return trial


def answer(plane, device: str, phase: str, reason: str = "") -> None:
    """The device reports on the trial that its twin names."""
    want = plane.publisher.twin(device).trials[MODEL]
    report = UpdateReport(
        model=MODEL, target=want.target, version=want.version, counter=want.counter,
        generation=want.generation, rollout=want.rollout, phase=phase, reason=reason,
    )  # fmt: skip
    with plane.sessions.begin() as session:
        session.add(
            AssignmentEvent(
                device=device, rollout=want.rollout, report=report.model_dump(mode="json"),
                at=plane.now,
            )
        )  # fmt: skip


def serve(plane, device: str, version: int, errors: int = 0, **more: object) -> None:
    """The device reports figures of a version."""
    report = MetricsReport(
        model=MODEL, version=version, window_s=5, requests=1000, errors=errors, rejects=1,
        corrections=2, latency_p50_us=800.0, latency_p99_us=1000.0 * version, rss_mib=90.0, **more,
    )  # fmt: skip
    with plane.sessions.begin() as session:
        session.add(
            Metric(
                device=device, model=MODEL, version=version, at=plane.now,
                report=report.model_dump(mode="json"),
            )
        )  # fmt: skip


def out(plane, trial: str):
    with plane.sessions() as session:
        return trials.trial_out(session, trial)


def share(plane, trial: str, value: float) -> None:
    with plane.sessions.begin() as session:
        trials.set_share(session, trial, value, now=plane.now)


def passed(plane, trial: str) -> None:
    for device in DEVICES:
        answer(plane, device, "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(trial) == "COMPLETED"


def test_a_trial_is_signed_beside_what_the_device_has(plane, tried: str) -> None:
    twin = plane.publisher.twin("d0")
    assert twin.models[MODEL].version == 1
    trial = twin.trials[MODEL]
    assert (trial.version, trial.mode, trial.share, trial.rollout) == (2, "ab", 0.1, tried)
    signed = plane.director.assigned("d0")
    assert signed == sorted([twin.models[MODEL].target, trial_path(trial.target)])


def test_another_share_keeps_the_generation_and_reaches_later_waves(plane, tried: str) -> None:
    before = plane.publisher.twin("d0")
    share(plane, tried, 0.5)
    plane.turn()
    after = plane.publisher.twin("d0")
    assert after.version > before.version and after.models == before.models
    assert after.trials[MODEL] == before.trials[MODEL].model_copy(update={"share": 0.5})
    assert out(plane, tried).share == 0.5


def test_a_trial_that_passed_crowns_nobody_and_goes_on(plane, tried: str) -> None:
    passed(plane, tried)
    assert plane.version_state(2) == "published" and plane.version_state(1) == "champion"
    assert plane.publisher.twin("d0").trials[MODEL].version == 2
    assert out(plane, tried).devices == 2


def test_both_sides_are_shown_on_the_same_devices(plane, tried: str) -> None:
    for device in DEVICES:
        serve(plane, device, 1)
        serve(plane, device, 2, 10, trial="ab", share=0.1)
    shown = out(plane, tried)
    assert (shown.champion.requests, shown.champion.errors) == (2000, 0)
    assert (shown.challenger.requests, shown.challenger.errors) == (2000, 20)
    assert (shown.challenger.corrections, shown.challenger.rejects) == (4, 2)
    assert (shown.champion.latency_p99_us, shown.challenger.latency_p99_us) == (1000.0, 2000.0)


def test_differences_of_a_shadow_are_summed_over_devices(plane) -> None:
    plane.enrol(*DEVICES)
    plane.release(1)
    plane.complete(1, *DEVICES)
    plane.release(2)
    trial = plane.start(2, mode="shadow", share=1.0)
    plane.turn()
    for device, mean, scored in (("d0", 0.2, 100), ("d1", 0.8, 300)):
        comparison = ComparisonReport(
            compared=scored, disagreed=3, errors=1, shed=2, scored=scored, abs_max=mean * 2,
            abs_mean=mean,
        )  # fmt: skip
        serve(plane, device, 2, trial="shadow", share=1.0, comparison=comparison)
    found = out(plane, trial).differences
    assert (found.compared, found.disagreed, found.errors, found.shed) == (400, 6, 2, 4)
    assert found.abs_max == pytest.approx(1.6) and found.abs_mean == pytest.approx(0.65)


def test_a_trial_with_more_errors_than_the_old_version_beside_it_is_halted_and_taken_back(
    plane,
) -> None:
    many = [f"d{number}" for number in range(12)]
    plane.enrol(*many)
    plane.release(1)
    plane.complete(1, *many)
    plane.release(2)
    plane.now += 1
    trial = plane.start(2, mode="ab", share=0.5, on_failure="halt")
    plane.turn()
    for device in many:
        answer(plane, device, "healthy")
    plane.turn()
    plane.now += 1
    for device in many:
        serve(plane, device, 1)
        serve(plane, device, 2, 400, trial="ab", share=0.5)
    with plane.sessions() as session:
        stored = load(session, session.get_one(Rollout, trial)).rollout
        found = comparison(session, stored, plane.now + 6)
    assert found is not None
    sides = [{each.device for each in side.devices} for side in (found.treated, found.control)]
    assert sides == [set(many), set(many)]
    plane.turn(6)
    assert plane.state(trial) == "HALTED"
    plane.turn()
    twin = plane.publisher.twin("d0")
    assert twin.trials == {} and twin.models[MODEL].version == 1


def test_a_dropped_trial_leaves_the_old_version_alone(plane, tried: str) -> None:
    passed(plane, tried)
    generation = plane.publisher.twin("d0").models[MODEL].generation
    assert plane.command(tried, "rollback") == "ROLLED_BACK"
    plane.turn()
    twin = plane.publisher.twin("d0")
    assert twin.trials == {} and twin.models[MODEL].generation == generation
    assert plane.version_state(1) == "champion"
    with pytest.raises(Conflict, match="nothing is tried any more"):
        share(plane, tried, 0.5)


def test_a_promotion_is_a_rollout_to_the_devices_that_try_the_version(plane, tried: str) -> None:
    with plane.sessions.begin() as session, pytest.raises(Conflict, match="when it is COMPLETED"):
        trials.promote(session, tried, PromoteIn(), "ana", now=plane.now)
    passed(plane, tried)
    with plane.sessions.begin() as session:
        promotion = trials.promote(session, tried, PromoteIn(), "ana", now=plane.now).id
    plane.turn()
    for device in DEVICES:
        twin = plane.publisher.twin(device)
        assert twin.trials == {} and twin.models[MODEL].version == 2
        assert twin.models[MODEL].rollout == promotion
        plane.report(device, "healthy")
    plane.turn()
    plane.turn(31)
    assert plane.state(promotion) == "COMPLETED" and plane.version_state(2) == "champion"


def test_an_ordinary_rollout_ends_the_trial_of_its_devices(plane, tried: str) -> None:
    passed(plane, tried)
    plane.release(3)
    plane.now += 1
    plane.start(3)
    plane.turn()
    twin = plane.publisher.twin("d0")
    assert twin.trials == {} and twin.models[MODEL].version == 3


def test_what_is_no_trial_is_refused(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.complete(1, "d0")
    with pytest.raises(Conflict, match="ab or shadow"):
        share(plane, rollout, 0.5)
    with pytest.raises(Conflict, match="ab or shadow"):
        out(plane, rollout)
    with pytest.raises(NotFound):
        share(plane, "nothing", 0.5)
