"""Pauses, windows, quotas, installs by hand, and what the device says of itself."""

from __future__ import annotations

import os
import threading
from datetime import datetime
from pathlib import Path

import pytest

from edge_agent.update.attempt import Source
from edge_agent.update.install import DISK_MARGIN_BYTES
from edge_agent.update.selftest import SelfTestResult, run_selftest
from edge_agent.wire import topics, windows
from edge_agent.wire.messages import Desired

NIGHT = datetime.fromisoformat("2024-01-01T03:00")
DAY = datetime.fromisoformat("2024-01-01T12:00")


@pytest.fixture
def first(world, device, weights):
    """A device that serves version 1."""
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign("dev-1", release, 1))
    device.reports.clear()
    device.chunks.requested.clear()
    return release


@pytest.fixture
def second(first, world, weights):
    return world.release(2, world.bundle(2, weights(2)))


def reasons(device) -> list[str]:
    return [report.reason for report in device.reports if report.reason]


# ── pauses ───────────────────────────────────────────────────────────────────────────────────────


def test_paused_nothing_begins_nor_uses_the_line_over_a_restart_too(second, world, device) -> None:
    twin = world.assign("dev-1", second, 2)
    device.updater.pause()
    device.updater.pause()
    world.requests.clear()
    assert not device.apply(twin) and not device.apply(twin)
    assert reasons(device) == ["paused"], "said once"
    device.power_off()
    device.boot()
    assert device.updater.paused and device.updater.status()["paused"] is True
    assert not device.apply(twin)
    assert world.requests == [] and device.served_version() == 1
    device.updater.resume()
    assert device.apply(twin)
    assert device.served_version() == 2 and device.updater.status()["paused"] is False


def test_a_pause_ends_a_download_that_goes_on_where_it_was(second, world, device) -> None:
    seen = []

    def pause(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            seen.append(topic)
            if len(seen) == 3:
                device.updater.pause()
            if len(seen) > 3:
                return None
        return payload

    world.bus.tamper = pause
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert reasons(device) == ["paused"]
    assert device.updater.status()["reason"] == "paused"
    world.bus.tamper = lambda topic, payload: payload
    device.chunks.requested.clear()
    device.updater.resume()
    assert device.apply(twin)
    assert device.served_version() == 2
    assert len(set(device.chunks.requested)) == 5 - 3


def test_a_pause_leaves_a_probation_to_its_verdict(second, world, device) -> None:
    wait = device.updater._wait

    def pause(seconds: float) -> bool:
        device.updater.pause()
        return wait(seconds)

    device.updater._wait = pause
    assert device.apply(world.assign("dev-1", second, 2))
    assert device.phases()[-1] == "healthy"


def test_attack_20_a_release_withdrawn_while_paused_is_cancelled(second, world, device) -> None:
    twin = world.assign("dev-1", second, 2)

    def pause_and_withdraw(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            device.updater.pause()
            device.updater.submit(Desired(version=3))
            return None
        return payload

    world.bus.tamper = pause_and_withdraw
    assert device.apply(twin)
    assert device.phases()[-1] == "cancelled"


# ── windows ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nightly(device):
    """Switches at night only; returns how to set the clock."""
    orders = device.updater._orders
    orders._windows = (windows.parse("02:00-04:00"),)

    def set_clock(now: datetime) -> None:
        orders._now = lambda: now

    set_clock(DAY)
    return set_clock


def test_outside_of_the_windows_all_but_the_switch_is_done(second, world, device, nightly) -> None:
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert device.served_version() == 1
    assert device.store.slot("digits", second.bundle_sha) is not None
    report = device.reports[-1]
    assert (report.phase, report.reason) == ("staged", "outside_window")
    assert "2024-01-02 02:00" in report.detail
    status = device.updater.status()
    assert status["window"] == {"open": False, "opens_at": "2024-01-02T02:00"}
    assert (status["phase"], status["reason"]) == ("staged", "outside_window")
    world.requests.clear()
    assert not device.apply(twin)
    assert world.requests == [], "waiting costs the line nothing"
    nightly(NIGHT)
    assert device.apply(twin)
    assert device.served_version() == 2
    assert reasons(device) == ["outside_window"]


def test_what_waits_for_a_window_is_verified_again_before_its_switch(
    second, world, device, nightly, weights
) -> None:
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    world.director.assign("dev-1", [])  # withdrawn, though the twin does not say so yet
    nightly(NIGHT)
    assert not device.apply(twin)
    assert device.served_version() == 1 and device.reports[-1].reason == "not_assigned"


def test_a_probation_ends_outside_of_the_windows_too(second, world, device, nightly) -> None:
    nightly(NIGHT)
    wait = device.updater._wait

    def morning(seconds: float) -> bool:
        nightly(DAY)
        return wait(seconds)

    device.updater._wait = morning
    assert device.apply(world.assign("dev-1", second, 2))
    assert device.phases()[-1] == "healthy"


# ── quota ────────────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_fit_into_the_quota_is_refused_before_a_byte_of_it(
    second, world, device
) -> None:
    device.store._quota_bytes = DISK_MARGIN_BYTES + 600_000
    assert device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("failed", "over_quota")
    assert device.chunks.requested == [] and device.served_version() == 1
    device.store._quota_bytes = DISK_MARGIN_BYTES + 6_000_000
    assert device.apply(world.assign("dev-1", second, 3))
    assert device.served_version() == 2


# ── what the device says ─────────────────────────────────────────────────────────────────────────


def test_the_status_tells_the_last_refusal_over_a_restart(second, world, device) -> None:
    assert device.updater.status()["last_refusal"] is None
    device.selftest = SelfTestResult(False, "GoldenMismatch: label differs", 1.0)
    device.apply(world.assign("dev-1", second, 2))
    device.power_off()
    device.boot()
    status = device.updater.status()
    assert status["phase"] == "idle" and status["targets"] == []
    refusal = status["last_refusal"]
    assert (refusal["version"], refusal["phase"]) == (2, "failed")
    assert refusal["reason"] == "selftest_failed" and "label differs" in refusal["detail"]
    assert refusal["at"].startswith("20")


def test_the_status_tells_what_is_under_way(second, world, device) -> None:
    seen = []
    device.updater._share_done = lambda: 0.25

    def look(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            seen.append(device.updater.status())
        return payload

    world.bus.tamper = look
    device.apply(world.assign("dev-1", second, 2))
    assert (seen[0]["phase"], seen[0]["progress"]) == ("downloading", 0.25)
    assert seen[0]["targets"] == [second.target]
    assert device.updater.status()["phase"] == "idle"


def test_the_status_forgets_what_waited_and_is_wanted_no_more(second, world, device) -> None:
    world.down = True
    assert not device.apply(world.assign("dev-1", second, 2))
    assert device.updater.status()["reason"] == "unreachable"
    assert device.apply(Desired(version=3))
    status = device.updater.status()
    assert (status["phase"], status["reason"], status["targets"]) == ("idle", "", [])


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────


def test_an_install_by_hand_outranks_a_pause_and_the_windows(
    second, world, device, nightly
) -> None:
    world.assign("dev-1", second, 2)
    device.updater.pause()
    [report] = device.updater.install_from(device.updater._source)
    assert (report.phase, report.version) == ("healthy", 2)
    assert device.served_version() == 2


def test_what_failed_by_the_line_can_be_installed_by_hand(second, world, device) -> None:
    twin = world.assign("dev-1", second, 2)
    device.selftest = SelfTestResult(False, "no", 1.0)
    device.apply(twin)
    device.selftest = SelfTestResult(True, "", 1.0)
    assert device.apply(twin) and device.served_version() == 1
    [report] = device.updater.install_from(device.updater._source)
    assert report.phase == "healthy" and device.served_version() == 2


def test_an_install_by_hand_ends_a_download_under_way(second, world, device) -> None:
    """The line is dead, so the download would take its whole patience."""
    begun = threading.Event()

    def dead(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            begun.set()
            return None
        return payload

    world.bus.tamper = dead
    device.transfer._stall_timeout_s = 600.0
    twin = world.assign("dev-1", second, 2)
    device.updater.submit(twin)
    thread = threading.Thread(target=device.updater.run)
    thread.start()
    assert begun.wait(10)
    blob = world.blobs.get(second.bundle_sha)

    def obtain(assigned, progress, interrupted) -> Path:
        path = device.directory / "medium.bundle"
        path.write_bytes(blob)
        return device.store.stage(path, assigned.sha256, assigned.release)

    [report] = device.updater.install_from(Source(device.trust, obtain))
    assert report.phase == "healthy" and device.served_version() == 2
    device.updater.stop()
    thread.join(10)
    assert not thread.is_alive()


# ── self-test ────────────────────────────────────────────────────────────────────────────────────


def test_fault_28_a_self_test_that_hangs_is_ended_by_an_interruption(tmp_path: Path) -> None:
    asked = []

    def interrupted() -> bool:
        asked.append(1)
        return len(asked) > 1

    # a FIFO for the manifest: reading it hangs
    os.mkfifo(tmp_path / "manifest.json")
    result = run_selftest(tmp_path, timeout_s=600.0, interrupted=interrupted)
    assert not result.ok and result.detail == "interrupted"


# ── what was lost ────────────────────────────────────────────────────────────────────────────────


def test_a_committed_version_that_no_longer_loads_gives_way_and_is_mended_by_itself(
    second, first, world, device
) -> None:
    twin = world.assign("dev-1", second, 2)
    device.apply(twin)
    network = device.store.current("digits").path / "model.onnx"
    network.write_bytes(b"damaged")
    device.refuse_to_activate.add(second.bundle_sha)
    world.down = True
    for _ in range(2):  # offline over several starts
        device.power_off()
        device.boot()
        assert device.served_version() == 1
        assert not device.apply(twin)
    device.refuse_to_activate.clear()
    world.down = False
    device.chunks.requested.clear()
    assert device.apply(twin)
    assert device.served_version() == 2 and device.chunks.requested
    assert network.read_bytes() != b"damaged"


def test_one_that_cannot_be_mended_is_reported_once_and_the_one_before_serves(
    second, first, world, device
) -> None:
    twin = world.assign("dev-1", second, 2)
    device.apply(twin)
    device.refuse_to_activate.add(second.bundle_sha)
    device.power_off()
    device.boot()
    device.reports.clear()
    assert device.apply(twin) and device.apply(twin)
    assert device.served_version() == 1
    assert [(report.phase, report.reason) for report in device.reports if report.reason] == [
        ("rolled_back", "activation_failed")
    ]
    for _ in range(5):
        device.power_off()
        device.boot()
        assert device.served_version() == 1
        assert device.apply(twin)


def test_golden_inputs_answered_wrongly_at_the_end_of_the_probation_go_back(
    second, world, device
) -> None:
    def wrong(model: str) -> None:
        raise ValueError("label differs")

    device.updater._passes._watch._recheck = wrong
    assert device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("rolled_back", "health_golden")
    assert device.served_version() == 1
