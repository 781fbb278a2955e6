"""The updater's thread: wakes, retries, stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


@pytest.fixture
def running(device) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=device.updater.run)
    thread.start()
    yield thread
    device.updater.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_installs_what_is_submitted(world, device, weights, running) -> None:
    first = world.release(1, world.bundle(1, weights(1)))
    device.updater.submit(world.assign("dev-1", first, 1))
    until(lambda: "healthy" in device.phases())
    second = world.release(2, world.bundle(2, weights(2)))
    device.updater.submit(world.assign("dev-1", second, 2))
    until(lambda: device.phases().count("healthy") == 2)
    assert device.served_version() == 2


def test_retries_by_itself_once_the_line_is_back(world, device, weights, running) -> None:
    release = world.release(1, world.bundle(1, weights(1)))
    twin = world.assign("dev-1", release, 1)
    world.down = True
    device.updater.submit(twin)
    until(lambda: [report.reason for report in device.reports] == ["unreachable"])
    world.down = False
    device.updater.wake()
    until(lambda: "healthy" in device.phases())


def test_survives_an_error_of_its_own(world, device, weights, running) -> None:
    release = world.release(1, world.bundle(1, weights(1)))
    twin = world.assign("dev-1", release, 1)
    refresh = device.trust.refresh
    device.trust.refresh = lambda: 1 / 0
    device.updater.submit(twin)
    until(lambda: bool(device.reports))
    assert (device.reports[-1].phase, device.reports[-1].reason) == ("failed", "internal_error")
    device.trust.refresh = refresh
    device.updater.submit(world.assign("dev-1", release, 2))
    until(lambda: "healthy" in device.phases())


def test_survives_an_error_while_it_finishes_a_probation(world, device, weights) -> None:
    first = world.release(1, world.bundle(1, weights(1)))
    device.updater._wait = lambda seconds: True  # the agent stops in the probation
    device.apply(world.assign("dev-1", first, 1))
    device.power_off()
    device.boot()
    models = device.store.models
    fail = [1]

    def fail_once() -> list[str]:
        if fail:
            fail.pop()
            raise RuntimeError("not now")
        return models()

    device.store.models = fail_once
    thread = threading.Thread(target=device.updater.run)
    thread.start()
    until(lambda: not fail)
    device.updater.wake()
    until(lambda: device.phases()[-1] == "healthy")
    device.updater.stop()
    thread.join(10)
    assert not thread.is_alive()
