"""The journal's way to the control plane: nothing lost, nothing removed too early."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from edge_agent.link.mqtt import Link, Retry
from edge_agent.link.outbox import Outbox
from edge_agent.link.uplink import Uplink
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.messages import Ack, UplinkHeader


class Cloud:
    """A control plane that acknowledges when it is told to."""

    def __init__(self, broker, device_id: str) -> None:
        self.connection = broker.connection()
        self.device_id = device_id
        self.answering = True
        self.seen: list[tuple[int, bytes]] = []
        self.arrived = threading.Condition()
        self.connection.subscribe(topics.uplink(device_id, "+"), self._on_message)

    def _on_message(self, _topic: str, payload: bytes) -> None:
        header, body = unpack_frame(payload, UplinkHeader)
        with self.arrived:
            self.seen.append((header.seq, bytes(body)))
            self.arrived.notify()
        if self.answering:
            ack = Ack(stream=header.stream, seqs=(header.seq,))
            self.connection.post(topics.ack(self.device_id), ack.encode())

    def wait_for(self, count: int, timeout_s: float = 10.0) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.seen) >= count, timeout_s), self.seen


def until(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def device(broker, tmp_path, request):
    device_id = f"up-{abs(hash(request.node.name)) % 10**8}"
    files = broker.device(device_id)
    link = Link(
        host=broker.host, port=broker.port, device_id=device_id,
        ca=files.ca, certificate=files.certificate, key=files.key, retry=Retry(0.05, 0.3),
    )  # fmt: skip
    outbox = Outbox(tmp_path / "outbox.db")
    uplink = Uplink(outbox, link, device_id, resend_after_s=getattr(request, "param", 0.3))
    uplink.start()
    yield device_id, link, outbox
    uplink.stop()
    link.stop()
    outbox.close()


def test_what_was_journalled_before_the_line_stood_arrives_in_order(broker, device):
    device_id, link, outbox = device
    for number in range(200):
        outbox.append("event", str(number).encode())
    cloud = Cloud(broker, device_id)
    with cloud.connection:
        link.start()
        until(lambda: outbox.count() == 0)
    # on a slow machine some come twice
    first_seen = dict.fromkeys(body for _, body in cloud.seen)
    assert list(first_seen) == [str(n).encode() for n in range(200)]


def test_a_row_stays_and_comes_again_until_it_is_acknowledged(broker, device):
    device_id, link, outbox = device
    cloud = Cloud(broker, device_id)
    cloud.answering = False
    with cloud.connection:
        link.start()
        outbox.append("report", b"precious")
        cloud.wait_for(2)
        assert outbox.count() == 1
        cloud.answering = True
        until(lambda: outbox.count() == 0)
    assert {body for _, body in cloud.seen} == {b"precious"}


@pytest.mark.parametrize("device", [600.0], indirect=True)
def test_a_new_connection_starts_over_without_waiting_for_the_time_out(broker, device):
    device_id, link, outbox = device
    cloud = Cloud(broker, device_id)
    cloud.answering = False
    with cloud.connection:
        link.start()
        outbox.append("report", b"precious")
        cloud.wait_for(1)
        cloud.answering = True
        link._client.socket().shutdown(socket.SHUT_RDWR)
        until(lambda: outbox.count() == 0)


@pytest.mark.parametrize("device", [600.0], indirect=True)
def test_what_nobody_subscribed_to_comes_again_soon(broker, device):
    device_id, link, outbox = device
    for number in range(5):
        outbox.append("event", str(number).encode())
    link.start()
    until(lambda: link.connected)
    time.sleep(0.5)  # sent to nobody
    cloud = Cloud(broker, device_id)
    with cloud.connection:
        until(lambda: outbox.count() == 0)
    assert {body for _, body in cloud.seen} == {b"0", b"1", b"2", b"3", b"4"}


@pytest.mark.slow
def test_nothing_is_lost_while_the_broker_restarts_again_and_again(broker, device):
    device_id, link, outbox = device
    cloud = Cloud(broker, device_id)
    with cloud.connection:
        link.start()
        link.wait_connected(5)
        for number in range(60):
            outbox.append("event", str(number).encode())
            if number % 20 == 10:
                broker.restart()
        until(lambda: outbox.count() == 0, 30)
    assert {body for _, body in cloud.seen} == {str(n).encode() for n in range(60)}
