"""Updates on a disk that is full at a bad moment, or has room for one update and no more."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from edge_agent.update.install import DISK_MARGIN_BYTES
from edge_agent.update.ports import HealthSample
from edge_agent.update.selftest import SelfTestResult
from edge_agent.wire import topics
from tests.update.conftest import DeviceUnderTest, World


def full(*_: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


@pytest.fixture
def second(world: World, device: DeviceUnderTest, weights: Callable[[int], dict[str, bytes]]):
    """The second version; the device serves the first one."""
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign("dev-1", release, 1))
    device.reports.clear()
    return world.release(2, world.bundle(2, weights(2)))


def test_fault_24_a_commit_that_the_disk_refuses_is_no_failure(second, world, device) -> None:
    commit = device.store.commit

    def full_once(model: str) -> None:
        device.store.commit = commit
        full()

    device.store.commit = full_once
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert device.apply(twin)
    assert device.phases()[-1] == "healthy" and "failed" not in device.phases()
    assert device.served_version() == 2


def test_fault_24_a_version_that_failed_is_not_tried_again_while_the_disk_is_full(
    second, world, device
) -> None:
    revert = device.store.revert
    device.store.revert = full
    device.health = [HealthSample(0, 0), HealthSample(100, 100)]  # then nothing but good
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert device.served_version() == 1, "it serves although the store could not go back"
    with pytest.raises(sqlite3.OperationalError):
        device.updater.finish_probations()
    assert device.served_version() == 1
    device.store.revert = revert
    device.updater.finish_probations()
    assert device.apply(twin)
    assert (device.reports[-1].phase, device.reports[-1].reason) == (
        "rolled_back",
        "health_errors",
    )
    assert device.served_version() == 1
    assert device.store.current("digits").version == 1


def test_fault_24_the_old_version_serves_when_the_disk_refuses_right_after_going_back(
    second, world, device
) -> None:
    revert = device.store.revert

    def full_after(model: str) -> None:
        device.store.revert = revert
        revert(model)
        full()

    device.store.revert = full_after
    device.health = [HealthSample(0, 0), HealthSample(100, 100)]
    assert device.apply(world.assign("dev-1", second, 2))
    assert (device.reports[-1].phase, device.reports[-1].reason) == (
        "rolled_back",
        "health_errors",
    )
    assert device.served_version() == 1


def test_fault_24_a_commit_whose_directory_could_not_be_synced_is_no_failure(
    second, world, device
) -> None:
    commit = device.store.commit

    def full_after(model: str) -> None:
        device.store.commit = commit
        commit(model)
        full()

    device.store.commit = full_after
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert device.apply(twin)
    assert device.phases()[-1] == "healthy" and "failed" not in device.phases()
    assert device.served_version() == 2


def test_fault_24_starts_on_a_full_disk_with_a_pending_version_that_does_not_load(
    second, world, device
) -> None:
    device.updater._wait = lambda seconds: True  # the power fails in its probation
    device.apply(world.assign("dev-1", second, 2))
    assert device.store.current("digits").pending
    device.refuse_to_activate.add(second.bundle_sha)
    device.serving.clear()
    recover, revert = device.store.recover, device.store.revert
    device.store.recover = device.store.revert = full
    assert [each.version for each in device.updater.restore()] == [1]
    assert device.served_version() == 1
    device.store.recover, device.store.revert = recover, revert
    device.updater.finish_probations()
    assert (device.reports[-1].phase, device.reports[-1].reason) == (
        "rolled_back",
        "activation_failed",
    )
    assert device.served_version() == 1


def leave_room_for_one(device: DeviceUnderTest, length: int) -> None:
    """A quota that holds what is there, and an update by a bundle of `length` bytes."""
    update = device.directory / "update"
    used = sum(path.stat().st_blocks * 512 for path in update.rglob("*") if path.is_file())
    device.store._quota_bytes = used + 3 * length + DISK_MARGIN_BYTES + 65_536


def test_what_is_here_of_a_download_needs_no_room_again(second, world, device) -> None:
    leave_room_for_one(device, second.length)
    replies: list[bytes] = []

    def lose_all_but_three(topic: str, payload: bytes) -> bytes | None:
        if topics.parse(topic).channel == "chunk/reply":
            replies.append(payload)
            return payload if len(replies) <= 3 else None
        return payload

    untouched, world.bus.tamper = world.bus.tamper, lose_all_but_three
    twin = world.assign("dev-1", second, 2)
    assert not device.apply(twin)
    assert device.reports[-1].reason == "transfer_stalled"
    world.bus.tamper = untouched
    assert device.apply(twin)
    assert device.served_version() == 2


def test_what_was_staged_or_unpacked_for_another_assignment_makes_room(
    second, world, device, weights
) -> None:
    third = world.release(3, world.bundle(3, weights(3)))
    leave_room_for_one(device, third.length)
    (device.directory / "update" / "downloads" / "left.bundle").write_bytes(bytes(200_000))
    first_twin = world.assign("dev-1", second, 2)
    newer = world.assign("dev-1", third, 3)
    world.assign("dev-1", second, 2)

    def superseded(slot: object) -> SelfTestResult:
        device.updater.submit(newer)
        return SelfTestResult(True, "", 0.0)

    device.updater._selftest = superseded
    assert device.apply(first_twin)
    assert device.phases()[-1] == "superseded"
    device.updater._selftest = lambda slot: device.selftest
    assert device.apply(world.assign("dev-1", third, 3))
    assert device.served_version() == 3
