from __future__ import annotations

import copy

import pytest
from sqlalchemy import select

from cloud.db.tables import AuditEntry, Device, GateDecision, Rollout
from cloud.orchestrator import rollout_detail, rollouts_out
from cloud.orchestrator.effects import Executor
from cloud.orchestrator.stored import load
from fleet.client.schemas import WaveIn
from fleet.rollouts.events import Withdraw

CANARY = [WaveIn(count=1, soak_s=5), WaveIn(percent=100, soak_s=5)]


def test_rollout_reaches_every_device_wave_by_wave(plane) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    rollout = plane.start(1, CANARY)
    assert plane.state(rollout) == "RUNNING"
    plane.turn()
    (first,) = {topic.split("/")[3] for topic, _, _ in plane.publisher.sent}
    assert plane.publisher.sent[0][2], "the twin is retained"
    plane.report(first, "downloading")
    plane.report(first, "healthy")
    plane.turn()
    assert len(plane.publisher.sent) == 1
    plane.turn(6)
    assert len(plane.publisher.sent) == 3
    for device in {"d0", "d1", "d2"} - {first}:
        plane.report(device, "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(rollout) == "COMPLETED"
    assert plane.version_state(1) == "champion"
    with plane.sessions() as session:
        decisions = session.scalars(
            select(GateDecision).where(GateDecision.gate == "failures").order_by(GateDecision.id)
        ).all()
        assert [d.subject for d in decisions] == [f"rollout:{rollout}:wave:{i}" for i in (0, 1)]
        assert [d.verdict for d in decisions] == ["pass", "pass"]
        assert decisions[1].evidence["responders"] == 2
        actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
        assert "rollout.completed" in actions


def test_bad_version_stops_after_its_first_device(plane) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    plane.complete(1, "d0", "d1", "d2")
    plane.release(2)
    before = len(plane.publisher.sent)
    rollout = plane.start(2, CANARY)
    plane.turn()
    (topic, _, _) = plane.publisher.sent[-1]
    assert len(plane.publisher.sent) == before + 1
    device = topic.split("/")[3]
    plane.report(device, "rolled_back", "unhealthy")
    plane.turn()
    assert plane.state(rollout) == "HALTED"
    for _ in range(5):
        plane.turn(100)
    assert [each[0] for each in plane.publisher.sent[before:]] == [topic, topic]
    assert plane.publisher.twin(device).models["digits"].version == 1
    assert plane.version_state(2) == "published"
    assert sorted(plane.phases(rollout).values()) == ["cancelled", "cancelled", "rolled_back"]
    with plane.sessions() as session:
        row = session.get_one(Rollout, rollout)
        detail = rollout_detail(session, row)
    assert "1 of 1 responders failed" in detail.reason
    assert detail.waves[0]["state"] == "FAILED"
    assert (detail.waves[0]["failed"], detail.waves[1]["pending"]) == (1, 2)
    assert detail.gates[0].verdict == "fail"


def test_roll_back_publishes_the_old_bytes_under_a_new_counter(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    plane.complete(1, "d0", "d1")
    plane.release(2)
    rollout = plane.complete(2, "d0", "d1")
    assert plane.version_state(2) == "champion"
    assert plane.command(rollout, "rollback") == "ROLLING_BACK"
    plane.turn()
    assert plane.counters(1) == [1, 3]
    for device in ("d0", "d1"):
        want = plane.publisher.twin(device).models["digits"]
        assert (want.version, want.counter) == (1, 3)
        plane.report(device, "healthy")
    plane.turn()
    assert plane.state(rollout) == "ROLLED_BACK"
    assert (plane.version_state(1), plane.version_state(2)) == ("champion", "retired")


def test_roll_back_of_a_later_rollout_never_goes_back_to_a_halted_version(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.complete(1, "d0")
    plane.release(2)
    halted = plane.start(2)
    plane.turn()
    plane.report("d0", "rolled_back", "unhealthy")
    plane.turn()
    assert plane.state(halted) == "HALTED"
    plane.release(3)
    later = plane.complete(3, "d0")
    plane.command(later, "rollback")
    plane.turn()
    assert plane.publisher.twin("d0").models["digits"].version == 1


def test_cancel_restores_the_twin_of_devices_that_have_not_begun(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    plane.complete(1, "d0", "d1")
    plane.release(2)
    rollout = plane.start(2)
    plane.turn()
    plane.report("d0", "activating")
    plane.turn()
    assert plane.command(rollout, "cancel") == "CANCELLED"
    plane.turn()
    assert plane.publisher.twin("d0").models["digits"].version == 2
    back = plane.publisher.twin("d1").models["digits"]
    assert (back.version, back.counter) == (1, 1)
    assert plane.director.assigned("d1") == [back.target]


def test_verb_given_before_any_turn_leaves_no_device_with_the_version(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    plane.command(rollout, "halt")
    plane.turn()
    plane.turn()
    assert plane.publisher.twin("d0").models == {}
    assert plane.phases(rollout) == {"d0": "cancelled"}


def test_newer_rollout_takes_the_device_from_the_older(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    first = plane.start(1)
    plane.turn()
    plane.report("d0", "healthy")
    plane.turn()
    plane.turn(61)  # d1 is unreachable
    plane.turn(6)
    assert plane.state(first) == "COMPLETED"
    plane.release(2)
    plane.start(2)
    plane.turn()
    assert plane.phases(first) == {"d0": "healthy", "d1": "superseded"}


def test_confirmed_twin_starts_the_phase_timer(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    with plane.sessions.begin() as session:
        device = session.get_one(Device, "d0")
        device.reported = {"desired_version": device.desired_version}
    plane.turn()
    plane.turn(90)
    assert plane.phases(rollout) == {"d0": "offered"}
    plane.turn(11)
    assert plane.phases(rollout) == {"d0": "timed_out"}
    assert plane.state(rollout) == "HALTED"


def test_revoked_device_is_dropped(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1)
    with plane.sessions.begin() as session:
        session.get_one(Device, "d1").revoked = True
    plane.turn()
    plane.report("d0", "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(rollout) == "COMPLETED"
    assert plane.phases(rollout) == {"d0": "healthy", "d1": "cancelled"}


def test_state_that_cannot_be_read_halts_and_is_still_shown(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    with plane.sessions.begin() as session:
        row = session.get_one(Rollout, rollout)
        machine = copy.deepcopy(row.machine)
        machine["rollout"]["plan"]["gate"]["max_failure_rate"] = "ten percent"
        row.machine = machine
    plane.turn()
    plane.turn()
    assert plane.state(rollout) == "HALTED"
    assert plane.publisher.sent == []
    with plane.sessions() as session:
        [shown] = rollouts_out(session, [session.get_one(Rollout, rollout)])
        assert shown.state == "HALTED"


@pytest.mark.parametrize("verb", ["resume", "approve"])
def test_verb_that_does_not_fit_says_what_it_needs(plane, verb: str) -> None:
    from cloud.errors import Conflict

    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    with pytest.raises(Conflict, match=f"is RUNNING; {verb} needs"):
        plane.command(rollout, verb)


def test_withdrawal_of_an_older_generation_leaves_the_newer_twin_alone(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    row = plane.row(plane.complete(1, "d0"))
    with plane.sessions() as session:
        rollout = load(session, row).rollout
    stale = Withdraw(device="d0", generation=0, previous=None)
    with plane.sessions.begin() as session:
        before = session.get_one(Device, "d0").desired
        Executor(
            session, plane.blobs, plane.image_repository, plane.evidence_key, plane.now
        ).execute(rollout, [stale])
        assert session.get_one(Device, "d0").desired == before


def test_row_shows_what_the_machine_made_of_a_late_report(plane) -> None:
    plane.enrol(*(f"d{index}" for index in range(9)))
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.report("d0", "failed", "selftest_failed")
    plane.turn()
    plane.report("d0", "healthy")
    assert plane.phases(rollout)["d0"] == "healthy"
    plane.turn()
    assert plane.phases(rollout)["d0"] == "failed"
