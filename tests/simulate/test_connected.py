"""Simulated devices on real sockets, against a real broker with mutual TLS."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.messages import Ack, Desired, DesiredModel, DeviceState, UplinkHeader
from edge_agent.wire.resending import NOBODY_SUBSCRIBES
from fleet.simulate.connected import ConnectedDevice
from fleet.simulate.errors import TooManyDevices
from fleet.simulate.fleet import Fleet, raise_file_limit, sources_of
from fleet.simulate.identities import Member
from fleet.simulate.line import LineLost, Trust, open_line
from fleet.simulate.models import Behaviour, Spread, hardware_of
from fleet.simulate.standing import Broker
from tests.conftest import Broker as Mosquitto

NOT_AUTHORISED = 0x87

PROMPT = Behaviour(
    phase_s={p: Spread(0.0) for p in ("downloading", "verified", "staged", "activating")},
    metrics_interval_s=0,
    will_delay_s=0,
    reconnect_first_s=0.05,
    reconnect_max_s=0.2,
)


def chain(broker: Mosquitto, name: str) -> Path:
    files = broker.device(name)
    path = files.certificate.with_name("chain.pem")
    path.write_text(files.certificate.read_text() + files.key.read_text())
    return path


def line_to(broker: Mosquitto) -> Broker:
    return Broker(broker.host, broker.port, Trust(broker.authority.certificate_path))


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class Watch:
    """What the control plane hears."""

    def __init__(self, broker: Mosquitto, *filters: str) -> None:
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connection = broker.connection()
        for one in filters:
            self.connection.subscribe(one, lambda topic, data: self.heard.put((topic, data)))

    def __enter__(self) -> Watch:
        self.connection.start(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.stop()

    async def next(self) -> tuple[str, bytes]:
        return await asyncio.to_thread(self.heard.get, timeout=20)


def run(test: Awaitable[Any]) -> None:
    async def main() -> None:
        await test

    asyncio.run(main())


def test_a_device_is_born_follows_its_twin_and_leaves_in_order(broker: Mosquitto) -> None:
    async def test() -> None:
        name = "sim-life"
        with Watch(broker, topics.state(name), topics.uplink(name, "+")) as watch:
            one = ConnectedDevice(
                name, "p", chain(broker, name), line_to(broker), hardware_of("p"), PROMPT
            )
            one.start()
            _, birth = await watch.next()
            assert DeviceState.decode(birth).online
            want = DesiredModel(
                target="models/m/p/1.bundle", version=1, counter=1, generation=1, probation_s=0
            )
            twin = Desired(version=1, models={"m": want})
            await asyncio.to_thread(
                watch.connection.publish, topics.desired(name), twin.encode(), 1, True
            )
            await until(lambda: one.device.versions() == {"m": 1})
            heard: list[str] = []
            while heard.count(topics.uplink(name, "report")) < 6:
                topic, data = await watch.next()
                heard.append(topic)
                if topic != topics.state(name):
                    header, _ = unpack_frame(data, UplinkHeader)
                    ack = Ack(stream=header.stream, seqs=(header.seq,)).encode()
                    watch.connection.post(topics.ack(name), ack)
            await until(lambda: not one.device.busy)
            boot = one.device.boot
            await one.stop()
            while DeviceState.decode((await watch.next())[1]).online:
                pass
            assert one.device.boot == boot
            watch.connection.publish(topics.desired(name), b"", 1, True)

    run(test())


def test_the_will_of_a_device_that_vanishes_carries_its_boot(broker: Mosquitto) -> None:
    async def test() -> None:
        name = "sim-gone"
        with Watch(broker, topics.state(name)) as watch:
            one = ConnectedDevice(
                name, "p", chain(broker, name), line_to(broker), hardware_of("p"), PROMPT
            )
            one.start()
            birth = DeviceState.decode((await watch.next())[1])
            one.vanish(3600.0)
            will = DeviceState.decode((await watch.next())[1])
            assert (will.online, will.boot) == (False, birth.boot)
            await one.stop()

    run(test())


def test_a_device_comes_back_after_the_broker_did(broker: Mosquitto) -> None:
    async def test() -> None:
        name = "sim-back"
        behaviour = replace(PROMPT, reconnect_max_s=0.1)
        to = line_to(broker)
        one = ConnectedDevice(name, "p", chain(broker, name), to, hardware_of("p"), behaviour)
        one.start()
        await until(lambda: one.up)
        broker.restart()  # here: the broker ends with the thread that started it
        await until(lambda: to.counts.connects >= 2 and one.up)
        await one.stop()
        assert to.counts.up == 0

    run(test())


def test_churn_takes_devices_away_and_brings_them_back(broker: Mosquitto) -> None:
    async def test() -> None:
        members = [Member(f"sim-churn-{n}", "p", chain(broker, f"sim-churn-{n}")) for n in range(3)]
        churning = replace(PROMPT, churn_per_minute=600.0, away_s=Spread(0.05), reboots=0.5)
        to = line_to(broker)
        fleet = Fleet(members, to, churning, seed=4)
        boots = {device.boot for device in fleet.devices}
        fleet.start()
        await until(lambda: to.counts.went_away >= 6 and to.counts.connects >= 9)
        assert {device.boot for device in fleet.devices} != boots
        fleet.calm()
        await until(lambda: to.counts.up == 3)
        away = to.counts.went_away
        await asyncio.sleep(0.3)  # three would have gone in a tenth of it
        assert to.counts.went_away == away
        await fleet.stop()
        assert fleet.snapshot().counts.up == 0

    run(test())


def test_a_stranger_s_certificate_and_another_s_topic_are_refused(
    broker: Mosquitto, tmp_path: Path
) -> None:
    from fleet.enrolment.ca import CertificateAuthority

    class Nobody:
        lost: str = ""

        def on_message(self, topic: str, payload: bytes) -> None: ...

        def on_lost(self, reason: str) -> None:
            self.lost = reason

    async def test() -> None:
        strange = CertificateAuthority.open(tmp_path / "pki", "x").client_files("stranger")
        trust = Trust(broker.authority.certificate_path)
        owner = Nobody()
        with pytest.raises(LineLost):
            await open_line(
                owner, trust, strange.chain, host=broker.host, port=broker.port,
                client_id="stranger", filters=(), will=None,
            )  # fmt: skip
        with pytest.raises(LineLost, match="CERTIFICATE_VERIFY_FAILED"):
            await open_line(
                owner, Trust(strange.ca), chain(broker, "sim-a"), host=broker.host,
                port=broker.port, client_id="sim-a", filters=(), will=None,
            )  # fmt: skip
        line = await open_line(
            owner, trust, chain(broker, "sim-a"), host=broker.host, port=broker.port,
            client_id="sim-a", filters=(topics.desired("sim-a"),), will=None,
        )  # fmt: skip
        answers: list[int] = []
        line.publish(topics.state("sim-b"), b"{}", answer=answers.append)
        line.publish(topics.uplink("sim-a", "event"), b"{}", answer=answers.append)
        await until(lambda: len(answers) == 2)
        assert answers == [NOT_AUTHORISED, NOBODY_SUBSCRIBES]
        line.close()
        with pytest.raises(LineLost):
            line.publish(topics.uplink("sim-a", "event"), b"{}")

    run(test())


def test_more_than_the_broker_takes_at_once_waits_on_the_line(broker: Mosquitto) -> None:
    class Nobody:
        def on_message(self, topic: str, payload: bytes) -> None: ...

        def on_lost(self, reason: str) -> None: ...

    async def test() -> None:
        name = "sim-many"
        line = await open_line(
            Nobody(), Trust(broker.authority.certificate_path), chain(broker, name),
            host=broker.host, port=broker.port, client_id=name, filters=(), will=None,
        )  # fmt: skip
        answers: list[int] = []
        for _ in range(1000):
            line.publish(topics.uplink(name, "event"), b"x" * 100, answer=answers.append)
        assert line.unanswered == 1000
        await until(lambda: len(answers) == 1000)
        assert set(answers) == {NOBODY_SUBSCRIBES} and line.unanswered == 0
        line.close()

    run(test())


def test_more_devices_than_files_may_be_open_are_refused_in_one_line() -> None:
    with pytest.raises(TooManyDevices, match="open files"):
        raise_file_limit(1 << 40)


def test_more_connections_than_an_address_has_ports_come_from_several() -> None:
    assert sources_of("127.0.0.1", 10_000) == (None,)
    assert sources_of("10.1.2.3", 100_000) == (None,)
    assert sources_of("127.0.0.1", 45_000) == ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
