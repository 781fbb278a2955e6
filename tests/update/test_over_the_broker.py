"""An update through a real broker, with mutual TLS, and through its restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloud.delivery import Delivery
from edge_agent.link.chunks import MqttChunkPort
from edge_agent.link.fetch import FetchPort
from edge_agent.link.mqtt import Link, Retry
from edge_agent.update.transfer import Pace


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


@pytest.fixture
def online(world, device, broker) -> Iterator[Link]:
    """The device's ports and delivery on the broker instead of in memory."""
    files = broker.device("dev-1")
    link = Link(
        host=broker.host, port=broker.port, device_id="dev-1",
        ca=files.ca, certificate=files.certificate, key=files.key, retry=Retry(0.1, 0.5),
    )  # fmt: skip
    device.power_off()
    device.fetch = FetchPort(link, "dev-1", timeout_s=2.0)
    device.chunks = MqttChunkPort(link, "dev-1")
    device.boot()
    device.transfer._reply_timeout_s = 1.0
    device.transfer._stall_timeout_s = 10.0
    with broker.connection("delivery") as connection:
        delivery = Delivery(
            connection,
            world.blobs,
            world.directory / "image",
            world.directory / "director",
            world.sessions,
        )
        delivery.start()
        link.start()
        until(lambda: link.connected)
        yield link
        link.stop()
        delivery.stop()


def test_installs_over_the_broker(world, device, weights, online) -> None:
    release = world.release(1, world.bundle(1, {"model.onnx": weights(1)["model.onnx"] * 20}))
    assert device.apply(world.assign("dev-1", release, 1))
    assert device.phases()[-1] == "healthy"
    assert device.served_version() == 1


@pytest.mark.slow
def test_a_broker_that_restarts_midway_only_delays(world, device, weights, online, broker) -> None:
    raw = b"".join(weights(seed)["model.onnx"] for seed in range(20))
    release = world.release(1, world.bundle(1, {"model.onnx": raw}))
    twin = world.assign("dev-1", release, 1)
    device.transfer._pace = Pace(max_kib_s=4096)
    thread = threading.Thread(target=device.updater.run)
    thread.start()
    device.updater.submit(twin)
    until(lambda: (device.transfer.progress or (0, 0))[0] > 0)
    broker.restart()
    until(lambda: "healthy" in device.phases(), 60.0)
    device.updater.stop()
    thread.join(10)
    assert device.served_version() == 1
