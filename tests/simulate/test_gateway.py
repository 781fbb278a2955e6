"""A simulated gateway on a real broker with a real ingest behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloud.blobs import Blobs
from cloud.db.engine import Sessions
from cloud.db.tables import AssignmentEvent, Device
from cloud.ingest import Ingest
from edge_agent.wire import topics
from edge_agent.wire.messages import Desired, DesiredModel
from fleet.simulate.gateway import Gateway
from fleet.simulate.line import Trust, open_line
from fleet.simulate.mqtt5 import REFUSED
from tests.conftest import Broker as Mosquitto
from tests.simulate.test_connected import PROMPT, chain, line_to, until

GATEWAY = "sim-box"
BELOW = [f"sim-below-{n}" for n in range(20)]


def device(name: str, gateway: str = "") -> Device:
    return Device(
        id=name, profile="p", labels={}, inventory={}, certificate_serial="",
        certificate_expires_at=0.0, enrolled_at=0.0, gateway=gateway, reported={}, desired={},
    )  # fmt: skip


@pytest.fixture
def registered(sessions: Sessions) -> Sessions:
    with sessions.begin() as session:
        session.add(device(GATEWAY))
        session.add_all(device(name, GATEWAY) for name in BELOW)
    return sessions


def online(sessions: Sessions) -> int:
    with sessions() as session:
        return session.query(Device).filter(Device.online.is_(True)).count()


def test_one_connection_carries_twenty_devices_through_an_update(
    broker: Mosquitto, registered: Sessions, blobs: Blobs
) -> None:
    async def test(bus: Any) -> None:
        to = line_to(broker)
        gateway = Gateway(
            GATEWAY, "p", chain(broker, GATEWAY), to, [(name, "p") for name in BELOW], PROMPT
        )
        gateway.start()
        await until(lambda: online(registered) == 21)
        assert to.counts.connects == 1
        want = DesiredModel(
            target="models/m/p/1.bundle", version=1, counter=1, generation=1, probation_s=0
        )
        for name in BELOW:
            twin = Desired(version=1, models={"m": want}).encode()
            bus.publish(topics.of(name, "desired", GATEWAY), twin, 1, True)
        await until(lambda: all(each.versions() == {"m": 1} for each in gateway.below.values()))
        await until(lambda: not any(each.busy for each in gateway.below.values()))
        with registered() as session:
            assert session.query(AssignmentEvent).count() == 6 * len(BELOW)
        assert to.counts.refused == 0
        gateway.vanish(3600.0)
        await until(lambda: online(registered) == 0)
        await gateway.stop()
        for name in BELOW:
            bus.publish(topics.of(name, "desired", GATEWAY), b"", 1, True)

    with broker.connection() as bus:
        Ingest(registered, blobs, bus).start()
        bus.wait_connected(10)
        asyncio.run(test(bus))


def test_a_gateway_cannot_speak_below_another_one(broker: Mosquitto) -> None:
    class Nobody:
        def on_message(self, topic: str, payload: bytes) -> None: ...

        def on_lost(self, reason: str) -> None: ...

    async def test() -> None:
        line = await open_line(
            Nobody(), Trust(broker.authority.certificate_path), chain(broker, GATEWAY),
            host=broker.host, port=broker.port, client_id=GATEWAY, filters=(), will=None,
        )  # fmt: skip
        answers: list[int] = []
        for topic in (
            topics.of("x", "state", GATEWAY),
            topics.of("x", "state", "other"),
            topics.of("x", "state"),
            topics.of("x", "chunk/request", GATEWAY),
        ):
            line.publish(topic, b"{}", answer=answers.append)
        await until(lambda: len(answers) == 4)
        assert [answer >= REFUSED for answer in answers] == [False, True, True, True]
        line.close()

    asyncio.run(test())
