"""A gateway speaks for the devices below it, and for nobody else."""

from __future__ import annotations

import pytest

from cloud.broker.connection import Message
from cloud.db.tables import Device, Inbox
from cloud.ingest import Ingest
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame
from edge_agent.wire.messages import Ack, DeviceEvent, DeviceState, UplinkHeader

NOW = 1_000_000.0


class Bus:
    """Records what is acknowledged."""

    def __init__(self) -> None:
        self.acks: list[tuple[str, Ack]] = []

    def subscribe_batched(self, topic_filter, handler, *, qos=1):
        pass

    def post(self, topic: str, payload: bytes, qos: int = 1) -> None:
        self.acks.append((topic, Ack.decode(payload)))


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def ingest(sessions, blobs, bus):
    with sessions.begin() as session:
        for name, gateway in (("below-1", "cam-1"), ("below-2", "cam-1"), ("lost", "gone")):
            session.add(
                Device(
                    id=name, profile="p", labels={}, inventory={}, certificate_serial="",
                    certificate_expires_at=0.0, enrolled_at=0.0, gateway=gateway, reported={},
                    desired={},
                )
            )  # fmt: skip
    return Ingest(sessions, blobs, bus, clock=lambda: NOW)


def event(device: str, gateway: str = "", seq: int = 1) -> Message:
    body = DeviceEvent(name="seen", at=NOW).encode()
    header = UplinkHeader(stream="s", seq=seq, created_at=NOW)
    return Message(topics.of(device, "up/event", gateway), pack_frame(header, body))


def state(device: str, gateway: str = "", *, online: bool = True, boot: str = "b") -> Message:
    payload = DeviceState(boot=boot, online=online, at=NOW).encode()
    return Message(topics.of(device, "state", gateway), payload)


def applied(sessions) -> set[str]:
    with sessions() as session:
        return {row.device for row in session.query(Inbox)}


def online(sessions) -> set[str]:
    with sessions() as session:
        return {row.id for row in session.query(Device) if row.online}


def test_what_comes_through_the_own_gateway_is_applied_and_acknowledged_there(
    ingest, sessions, bus
):
    ingest.handle([event("below-1", "cam-1"), event("cam-2")])
    assert applied(sessions) == {"below-1", "cam-2"}
    assert {topic for topic, _ in bus.acks} == {
        "skerry/v1/g/cam-1/d/below-1/ack",
        "skerry/v1/d/cam-2/ack",
    }


@pytest.mark.parametrize(
    ("device", "gateway"),
    [
        ("below-1", "cam-2"),  # below another one
        ("below-1", ""),  # has no certificate to speak for itself
        ("cam-2", "cam-1"),  # speaks for itself
        ("lost", "gone"),  # below a gateway that is revoked
        ("nobody", "cam-1"),
    ],
)
def test_what_comes_another_way_is_rejected(ingest, sessions, bus, device, gateway):
    ingest.handle([event(device, gateway)])
    ingest.handle_states([state(device, gateway)])
    assert ingest.counts["rejected"] == 2
    assert applied(sessions) == online(sessions) == set() and bus.acks == []


def test_a_gateway_s_will_takes_the_devices_below_it_offline(ingest, sessions):
    ingest.handle_states([state("cam-1"), state("cam-2")])
    ingest.handle_states([state("below-1", "cam-1"), state("below-2", "cam-1")])
    assert online(sessions) == {"cam-1", "cam-2", "below-1", "below-2"}
    ingest.handle_states([state("cam-1", online=False)])
    assert online(sessions) == {"cam-2"}


def test_a_birth_right_behind_the_gateway_s_will_stands(ingest, sessions):
    ingest.handle_states([state("cam-1"), state("below-1", "cam-1"), state("below-2", "cam-1")])
    ingest.handle_states(
        [state("cam-1", online=False), state("cam-1"), state("below-2", "cam-1", boot="c")]
    )
    assert online(sessions) == {"cam-1", "below-2"}


def test_an_old_will_of_a_gateway_takes_nobody_offline(ingest, sessions):
    ingest.handle_states([state("cam-1", boot="new"), state("below-1", "cam-1")])
    ingest.handle_states([state("cam-1", online=False, boot="old")])
    assert online(sessions) == {"cam-1", "below-1"}
