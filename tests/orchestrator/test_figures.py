"""Figures that the gates of a wave are given, from rows as ingest writes them."""

from __future__ import annotations

import pytest

from cloud.db.tables import Device, DriftReport, GateDecision, Metric, Rollout
from cloud.orchestrator import figures
from cloud.orchestrator.stored import load
from edge_agent.wire.messages import MetricsReport
from fleet.client.schemas import WaveIn
from fleet.rollouts.model import Outcomes

DEVICES = [f"d{index}" for index in range(16)]
WAVES = [WaveIn(count=8, soak_s=5), WaveIn(percent=100, soak_s=5)]


def write(plane, device: str, version: int, at: float, **figures: float) -> None:
    report = MetricsReport.model_validate(
        {
            "model": "digits",
            "version": version,
            "window_s": 5,
            "requests": 500,
            "errors": 0,
            "rejects": 0,
            "corrections": 0,
            "latency_p50_us": 100,
            "latency_p99_us": 200,
            "rss_mib": 50,
            **figures,
        }
    )
    with plane.sessions.begin() as session:
        session.add(
            Metric(
                device=device,
                model="digits",
                version=version,
                at=at,
                report=report.model_dump(mode="json"),
            )
        )


@pytest.fixture
def soaking(plane) -> tuple[str, list[str], list[str]]:
    """A rollout whose first wave soaks: its id, the wave's devices, the others."""
    plane.enrol(*DEVICES)
    plane.release(1)
    plane.complete(1, *DEVICES)
    plane.release(2)
    offered_before = len(plane.publisher.sent)
    rollout = plane.start(2, WAVES)
    plane.turn()
    wave = [topic.split("/")[3] for topic, *_ in plane.publisher.sent[offered_before:]]
    for device in wave:
        plane.report(device, "healthy")
    plane.turn()
    return rollout, wave, [device for device in DEVICES if device not in wave]


def compared(plane, rollout: str, after_s: float):
    with plane.sessions() as session:
        stored = load(session, session.get_one(Rollout, rollout)).rollout
        return figures.comparison(session, stored, plane.now + after_s)


def test_wave_is_compared_with_devices_not_yet_offered(plane, soaking) -> None:
    rollout, wave, others = soaking
    for device in wave:
        write(plane, device, 2, plane.now + 1, errors=100)
    for device in others:
        write(plane, device, 1, plane.now + 1)
    plane.turn(6)
    assert plane.state(rollout) == "HALTED"
    with plane.sessions() as session:
        decisions = {row.gate: row for row in session.query(GateDecision) if "-2-" in row.subject}
    assert decisions["errors"].verdict == "fail"
    assert decisions["errors"].evidence["control_requests"] == 8 * 500
    assert decisions["latency"].verdict == "pass"
    assert decisions["drift"].verdict == "insufficient"


def test_figures_are_summed_by_device_over_the_soak_and_as_long_before(plane, soaking) -> None:
    rollout, wave, others = soaking
    first = wave[0]
    started = plane.now - 1
    write(plane, first, 1, started - 2, requests=40, latency_p99_us=100)
    write(plane, first, 1, started - 1000, requests=7)  # long before
    write(plane, first, 1, plane.now + 1, requests=9)  # what it served before it switched
    write(plane, first, 2, plane.now + 1, requests=100, errors=3, latency_p99_us=100, rss_mib=60)
    write(plane, first, 2, plane.now + 2, requests=300, rejects=2, latency_p99_us=200, rss_mib=40)
    write(plane, others[0], 1, plane.now + 1, corrections=5)
    write(plane, others[1], 2, plane.now + 1)  # not what this side stands for
    found = compared(plane, rollout, 6)
    (mine,) = found.treated.devices
    assert (mine.device, mine.profile) == (first, "pi")
    assert mine.now.model_dump() == {
        "requests": 400,
        "errors": 3,
        "rejects": 2,
        "corrections": 0,
        "p99_us": 175,
        "rss_mib": 60,
    }
    assert mine.before is not None
    assert (mine.before.requests, mine.before.p99_us) == (40, 100)
    (other,) = found.control.devices
    assert (other.device, other.now.corrections) == (others[0], 5)


def test_control_group_has_devices_outside_the_rollout_but_none_that_was_offered(
    plane, soaking
) -> None:
    rollout, wave, others = soaking
    plane.enrol("outside", "other-profile", profile="pi")
    with plane.sessions.begin() as session:
        session.get_one(Device, "other-profile").profile = "gpu"
    for device in (wave[1], others[0], "outside", "other-profile"):
        write(plane, device, 1, plane.now + 1)
    write(plane, wave[0], 2, plane.now + 1)
    found = compared(plane, rollout, 6)
    assert {each.device for each in found.control.devices} == {others[0], "outside"}


def test_drift_checks_of_the_soak_count_the_newest_of_each_device(plane, soaking) -> None:
    rollout, wave, _ = soaking
    write(plane, wave[0], 2, plane.now + 1)
    with plane.sessions.begin() as session:
        for at, p_value in ((-50, 0.9), (1, 0.5), (2, 0.001)):
            session.add(
                DriftReport(
                    model="digits",
                    version=2,
                    scope=wave[0],
                    verdict="ok",
                    statistic=1.0,
                    threshold=2.0,
                    n=64,
                    detail={"p_value": p_value},
                    at=plane.now + at,
                )
            )
    (mine,) = compared(plane, rollout, 6).treated.devices
    assert mine.drift_p == 0.001


def test_nothing_is_compared_before_the_soak_is_over(plane, soaking) -> None:
    rollout, *_ = soaking
    assert compared(plane, rollout, 4) is None


def test_history_counts_the_updates_that_brought_the_old_version(plane) -> None:
    plane.enrol(*DEVICES)
    plane.release(1)
    first = plane.start(1, max_failure_rate=0.5)
    plane.turn()
    for index, device in enumerate(DEVICES):
        plane.report(device, "failed" if index < 3 else "healthy")
    plane.turn()
    plane.turn(6)
    assert plane.state(first) == "COMPLETED"
    plane.release(2)
    rollout = plane.start(2, WAVES)
    with plane.sessions() as session:
        plan = load(session, session.get_one(Rollout, rollout)).rollout.plan
    assert plan.history == {"pi": Outcomes(responders=16, failures=3)}
