"""The whole update on a device, against the real repositories, publisher and delivery."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.update.ports import HealthSample
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.transfer import Pace
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame, unpack_frame
from edge_agent.wire.manifest import Limits
from edge_agent.wire.messages import FINAL_PHASES, ChunkReply, Desired

Weights = Callable[[int], dict[str, bytes]]

GOOD = ["downloading", "verified", "staged", "activating", "probation", "healthy"]


def corrupt_chunk(index: int, times: int) -> Callable[[str, bytes], bytes | None]:
    """Flip a bit in one chunk's first `times` replies."""
    left = [times]

    def tamper(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel != "chunk/reply":
            return payload
        header, data = unpack_frame(payload, ChunkReply)
        if header.index != index or not left[0]:
            return payload
        left[0] -= 1
        return pack_frame(header, bytes([data[0] ^ 1]) + bytes(data[1:]))

    return tamper


@pytest.fixture
def first(world, device, weights: Weights):
    """A device that serves version 1."""
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign("dev-1", release, 1))
    device.reports.clear()
    device.chunks.requested.clear()
    return release


def test_installs_an_assigned_release_and_reports_each_phase(world, device, weights) -> None:
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign("dev-1", release, 7))
    assert device.phases() == GOOD
    assert {report.generation for report in device.reports} == {7}
    assert device.served_version() == 1
    current = device.store.current("digits")
    assert current is not None and not current.pending and current.counter == 1


def test_the_same_twin_again_does_nothing(first, world, device) -> None:
    world.requests.clear()
    assert device.apply(world.assign("dev-1", first, 1))
    assert device.reports == [] and world.requests == []


def test_a_new_assignment_of_what_is_served_is_healthy_without_network(
    first, world, device
) -> None:
    twin = world.assign("dev-1", first, 2)
    world.down = True
    assert device.apply(twin)
    assert device.phases() == ["healthy"]


def test_replaces_a_version_and_keeps_the_one_before(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    third = world.release(3, world.bundle(3, weights(3)))
    device.apply(world.assign("dev-1", second, 2))
    device.apply(world.assign("dev-1", third, 3))
    assert device.served_version() == 3
    slots = device.directory / "update" / "models" / "digits" / "slots"
    assert {path.name for path in slots.iterdir()} == {second.bundle_sha, third.bundle_sha}
    assert list((device.directory / "update" / "downloads").iterdir()) == []


def test_a_corrupt_chunk_is_fetched_again_and_only_that_one(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    world.bus.tamper = corrupt_chunk(2, times=2)
    device.apply(world.assign("dev-1", second, 2))
    assert device.served_version() == 2
    requested = device.chunks.requested
    assert requested.count(2) == 3
    assert all(requested.count(index) == 1 for index in set(requested) - {2})


def test_a_chunk_that_stays_corrupt_fails_once_and_the_old_version_serves(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    world.bus.tamper = corrupt_chunk(2, times=100)
    twin = world.assign("dev-1", second, 2)
    assert device.apply(twin)
    assert device.apply(twin)
    final = device.reports[-1]
    assert (final.phase, final.reason) == ("failed", "chunk_corrupt")
    assert device.phases().count("failed") == 1
    assert device.served_version() == 1


def test_a_lost_connection_resumes_with_the_chunks_that_are_missing(world, device, weights) -> None:
    release = world.release(1, world.bundle(1, weights(1)))
    seen = []

    def drop_after_three(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel != "chunk/reply":
            return payload
        seen.append(topic)
        return payload if len(seen) <= 3 else None

    world.bus.tamper = drop_after_three
    twin = world.assign("dev-1", release, 1)
    assert not device.apply(twin), "asks for a retry"
    assert device.reports[-1].reason == "transfer_stalled"
    device.power_off()
    device.boot()
    world.bus.tamper = lambda topic, payload: payload
    device.chunks.requested.clear()
    assert device.apply(twin)
    assert device.served_version() == 1
    assert len(set(device.chunks.requested)) == 5 - 3


@pytest.mark.parametrize(
    ("a_try", "min_kib_s", "ends"), [(1, 0.0, "healthy"), (0, 0.0, "failed"), (1, 1e6, "failed")]
)
def test_attack_18_a_line_that_brings_enough_each_try_is_no_dead_end_and_a_slower_one_is(
    world, device, weights, a_try: int, min_kib_s: float, ends: str
) -> None:
    raw = b"".join(weights(seed)["model.onnx"] for seed in range(3))
    release = world.release(1, world.bundle(1, {"model.onnx": raw}))
    left = 0

    def some(topic: str, payload: bytes) -> bytes | None:
        nonlocal left
        if topics.parse(topic).channel != "chunk/reply":
            return payload
        left -= 1
        return payload if left >= 0 else None

    world.bus.tamper = some
    device.transfer._stall_timeout_s = 0.1
    device.transfer._pace = Pace(min_kib_s=min_kib_s)
    twin = world.assign("dev-1", release, 1)
    tries = 0
    while not device.apply(twin):
        tries, left = tries + 1, a_try
    assert device.phases()[-1] == ends
    assert tries > 10 if ends == "healthy" else tries < 10


def test_no_connection_is_retried_and_said_once(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    twin = world.assign("dev-1", second, 2)
    world.down = True
    assert not device.apply(twin) and not device.apply(twin)
    assert [report.reason for report in device.reports] == ["unreachable"]
    world.down = False
    assert device.apply(twin)
    assert device.served_version() == 2


def test_a_failed_selftest_leaves_no_slot_behind(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.selftest = SelfTestResult(False, "GoldenMismatch: label differs", 1.0)
    device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("failed", "selftest_failed")
    assert "label differs" in device.reports[-1].detail
    assert device.served_version() == 1
    assert device.store.slot("digits", second.bundle_sha) is None


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([HealthSample(0, 0), HealthSample(100, 20)], "health_errors"),
        ([HealthSample(0, 0), *[HealthSample(100, 0, 90.0)] * 9], "health_latency"),
        ([HealthSample(0, 0), HealthSample(1, 0, 1.0, 900.0)], "health_memory"),
    ],
)
def test_fault_28_a_version_that_breaks_its_limits_is_rolled_back(
    first, world, device, weights, samples, reason
) -> None:
    limits = Limits(latency_p99_ms=50.0, memory_mib=500.0)
    second = world.release(2, world.bundle(2, weights(2), limits=limits))
    device.health = samples
    device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("rolled_back", reason)
    assert device.served_version() == 1
    current = device.store.current("digits")
    assert current is not None and current.sha256 == first.bundle_sha and not current.pending


def test_a_version_that_does_not_activate_is_rolled_back(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.refuse_to_activate.add(second.bundle_sha)
    device.apply(world.assign("dev-1", second, 2))
    assert device.reports[-1].reason == "activation_failed"
    assert device.served_version() == 1


def test_a_first_version_that_fails_stops_being_served(world, device, weights) -> None:
    release = world.release(1, world.bundle(1, weights(1)))
    device.health = [HealthSample(0, 0), HealthSample(10, 10)]
    device.apply(world.assign("dev-1", release, 1))
    assert device.reports[-1].phase == "rolled_back"
    assert device.serving == {} and device.store.current("digits") is None


def test_a_withdrawn_assignment_is_cancelled_midway(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    twin = world.assign("dev-1", second, 2)

    def withdraw(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            device.updater.submit(Desired(version=3))
            return None
        return payload

    world.bus.tamper = withdraw
    assert device.apply(twin)
    assert device.phases()[-1] == "cancelled"
    assert device.served_version() == 1


def test_a_newer_assignment_supersedes_one_midway(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    third = world.release(3, world.bundle(3, weights(3)))
    twin = world.assign("dev-1", second, 2)

    def supersede(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            device.updater.submit(world.assign("dev-1", third, 3))
            return None
        return payload

    world.bus.tamper = supersede
    device.apply(twin)
    assert device.phases()[-1] == "superseded"


def test_an_operators_roll_back_reuses_the_slot_that_is_still_there(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.apply(world.assign("dev-1", second, 2))
    device.chunks.requested.clear()
    again = world.release(1, first.bundle_sha)
    assert again.counter == 3
    device.apply(world.assign("dev-1", again, 3))
    assert device.served_version() == 1
    assert device.chunks.requested == []


def test_a_restart_in_probation_serves_the_new_version_and_finishes_it(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.updater._wait = lambda seconds: True  # stopping
    device.apply(world.assign("dev-1", second, 2))
    assert device.phases()[-1] == "probation"
    device.power_off()
    device.boot()
    assert device.served_version() == 2
    device.updater.finish_probations()
    assert device.phases()[-1] == "healthy"
    current = device.store.current("digits")
    assert current is not None and not current.pending


def test_fault_28_a_version_that_kills_the_agent_comes_back_no_more(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.updater._wait = lambda seconds: True
    device.apply(world.assign("dev-1", second, 2))
    for _ in range(3):
        device.power_off()
        device.boot()
        assert device.served_version() == 2
    device.power_off()
    device.boot()
    assert device.served_version() == 1
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("rolled_back", "crashed")
    assert device.apply(world.assign("dev-1", second, 2)), "not tried again"
    assert device.served_version() == 1


def test_fault_29_restarts_never_revert_a_committed_version(first, device) -> None:
    for _ in range(6):
        device.power_off()
        device.boot()
    assert device.served_version() == 1 and device.reports == []


def test_fault_27_serves_after_a_restart_without_network_long_after_expiry(
    first, world, device
) -> None:
    world.down = True
    world.clock.now += 3650 * 86400
    device.power_off()
    device.boot()
    assert device.served_version() == 1


def test_an_outcome_whose_report_was_lost_is_reported_at_the_next_start(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.selftest = SelfTestResult(False, "no", 1.0)
    keep, lose = device.updater._report_out, lambda report: (_ for _ in ()).throw(OSError("full"))
    device.updater._report_out = lambda report: (
        lose(report) if report.phase == "failed" else keep(report)
    )
    assert not device.apply(world.assign("dev-1", second, 2)), "asks for a retry"
    device.power_off()
    device.boot()
    assert [report.reason for report in device.reports if report.phase == "failed"] == [
        "selftest_failed"
    ]
    device.power_off()
    device.boot()
    assert device.phases().count("failed") == 1


def test_a_full_disk_is_reported_and_leaves_the_old_version(
    first, world, device, weights, tmp_path: Path
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))

    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    device.store.stage = full
    device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("failed", "no_space")
    assert device.served_version() == 1


def test_a_report_that_cannot_be_journalled_stops_no_update_and_is_made_up_for(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    keep = device.updater._report_out

    def full(report) -> None:
        raise OSError(28, "No space left on device")

    device.updater._report_out = full
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin), "the outcome is still to be reported"
    assert device.served_version() == 2
    device.updater._report_out = keep
    assert device.apply(twin)
    assert device.phases() == ["healthy"]


def test_what_is_reported_at_last_is_the_outcome_that_was_kept(
    first, world, device, weights
) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    mark = device.journal.mark_reported

    def fail_once(report) -> None:
        device.journal.mark_reported = mark
        raise sqlite3.OperationalError("disk I/O error")

    device.journal.mark_reported = fail_once
    device.apply(world.assign("dev-1", second, 2))
    assert {report.phase for report in device.reports if report.phase in FINAL_PHASES} == {
        "healthy"
    }


def test_a_probation_that_cannot_be_held_goes_back(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))

    def broken(model: str) -> HealthSample | None:
        raise RuntimeError("no figures")

    device.updater._health = broken
    assert device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == (
        "rolled_back",
        "internal_error",
    )
    assert device.served_version() == 1


def test_a_commit_that_fails_is_made_up_for(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    commit = device.store.commit

    def full(model: str) -> None:
        device.store.commit = commit
        raise sqlite3.OperationalError("database or disk is full")

    device.store.commit = full
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert device.apply(twin)
    assert device.phases()[-1] == "healthy" and "failed" not in device.phases()
    current = device.store.current("digits")
    assert current is not None and not current.pending


def test_goes_back_even_when_the_link_cannot_be_turned(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    device.refuse_to_activate.add(second.bundle_sha)
    rename, links = device.store._files.rename, []

    def fail_the_second(source: Path, destination: Path) -> None:
        links.extend([destination] * (destination.name == "current"))
        if len(links) == 2:
            raise OSError(5, "Input/output error")
        rename(source, destination)

    device.store._files.rename = fail_the_second
    device.apply(world.assign("dev-1", second, 2))
    assert device.phases()[-1] == "rolled_back"
    assert device.served_version() == 1
    device.power_off()
    device.boot()
    assert device.served_version() == 1


def test_serves_after_a_restart_on_a_disk_that_takes_no_writes(first, device) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    device.store.recover = full
    device.serving.clear()
    device.updater.restore()
    assert device.served_version() == 1


def test_what_fails_while_the_agent_stops_is_not_an_outcome(first, world, device, weights) -> None:
    second = world.release(2, world.bundle(2, weights(2)))
    twin = world.assign("dev-1", second, 2)

    def stop(slot: Path) -> SelfTestResult:
        device.updater.stop()
        raise sqlite3.ProgrammingError("Cannot operate on a closed database.")

    device.updater._selftest = stop
    device.apply(twin)
    assert device.journal.outcome("digits", 2, second.target) is None
