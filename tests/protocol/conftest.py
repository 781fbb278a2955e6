"""The control plane's side of the wire, word by word; and whoever is held to the contract.

Broker, delivery and signed repositories are real.  In the place of ingest stands the test, so that
it can lose an acknowledgement.  Every test runs against the real agent, a process, and against a
simulated device on a real socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from cloud.broker.connection import Connection, NotConnected
from cloud.broker.mosquitto import Mosquitto
from cloud.db.tables import Device, Release
from cloud.delivery import Delivery
from cloud.publish import director_target, publish_release
from cloud.services import Services, initialise, open_services
from cloud.settings import Settings
from edge_agent.device.identity import Membership, certificate_request, new_key, write_key
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.messages import (
    Ack,
    Desired,
    DesiredModel,
    DeviceState,
    UpdateReport,
    UplinkHeader,
)
from fleet.simulate.connected import ConnectedDevice
from fleet.simulate.line import Trust
from fleet.simulate.models import Behaviour, Spread, hardware_of
from fleet.simulate.standing import Broker
from tests.agent.conftest import MODEL, PROFILE, Process, tiny_bundle

KINDS = ("real", "simulated")
WAIT_S = 60.0


@dataclass(frozen=True)
class Heard:
    """One journalled message."""

    kind: str
    header: UplinkHeader
    payload: bytes

    @property
    def key(self) -> tuple[str, int]:
        return self.header.stream, self.header.seq


class Cloud:
    """What the device talks to.  `acknowledging` decides whether its journal empties."""

    def __init__(self, services: Services, broker: Mosquitto, connection: Connection) -> None:
        self.services = services
        self.broker = broker
        self.connection = connection
        self.acknowledging = True
        self.states: list[DeviceState] = []
        self.uplinks: list[Heard] = []
        self._arrived: queue.Queue[None] = queue.Queue()
        self._name = ""
        self._generation = 0
        connection.subscribe(topics.state("+"), self._on_state)
        connection.subscribe(topics.uplink("+", "+"), self._on_uplink)

    def listen_to(self, name: str) -> None:
        """Forget what was heard; hear this device alone."""
        self._name = name
        self.acknowledging = True
        self.states, self.uplinks = [], []

    def _on_state(self, topic: str, payload: bytes) -> None:
        if topic == topics.state(self._name) and payload:
            self.states.append(DeviceState.decode(payload))
            self._arrived.put(None)

    def _on_uplink(self, topic: str, payload: bytes) -> None:
        address = topics.parse(topic)
        if address.device != self._name:
            return
        header, body = unpack_frame(payload, UplinkHeader)
        heard = Heard(address.channel.removeprefix("up/"), header, bytes(body))
        self.uplinks.append(heard)
        if self.acknowledging:
            with contextlib.suppress(NotConnected):  # the device sends again
                self.acknowledge(heard)
        self._arrived.put(None)

    def acknowledge(self, *heard: Heard, **unknown: object) -> None:
        for each in heard:
            ack = Ack.model_validate(
                {"stream": each.header.stream, "seqs": (each.header.seq,), **unknown}
            )
            self.connection.post(topics.ack(self._name), ack.encode())

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait for messages until `condition` holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"did not come true: {what}; heard {self.phases()}, {self.states}"
            try:
                self._arrived.get(timeout=min(left_s, 0.2))
            except queue.Empty:
                continue

    def restart_broker(self) -> None:
        """Every line breaks; ours is back when this returns."""
        self.broker.stop()
        self.until(lambda: not self.connection.connected, "the line's end")
        self.broker.start()
        assert self.connection.wait_connected(WAIT_S)

    # ── what was heard ───────────────────────────────────────────────────────────────────────────

    def of_kind(self, kind: str) -> list[Heard]:
        """Messages of a kind, each once, as they first came."""
        first: dict[tuple[str, int], Heard] = {}
        for each in self.uplinks:
            first.setdefault(each.key, each)
        return [each for each in first.values() if each.kind == kind]

    def reports(self) -> list[UpdateReport]:
        return [UpdateReport.decode(each.payload) for each in self.of_kind("report")]

    def phases(self, generation: int | None = None) -> list[str]:
        return [r.phase for r in self.reports() if generation in (None, r.generation)]

    # ── what is said ─────────────────────────────────────────────────────────────────────────────

    def release(self, version: int, directory: Path) -> Release:
        bundle = self.services.blobs.put(tiny_bundle(directory / f"bundle-{version}", version))
        with self.services.sessions.begin() as session:
            return publish_release(
                session, self.services.blobs, self.services.image_repository,
                MODEL, version, PROFILE, bundle,
            )  # fmt: skip

    def assign(self, release: Release, *, probation_s: float = 0.3, **unknown: object) -> int:
        """Sign and send the twin with this release; returns its generation."""
        self._generation += 1
        generation = self._generation
        target = director_target(release, generation=generation, probation_s=probation_s)
        self.services.director.assign(self._name, [target])
        want = DesiredModel.model_validate(
            {
                "target": release.target, "version": release.version, "counter": release.counter,
                "generation": generation, "probation_s": probation_s, **unknown,
            }
        )  # fmt: skip
        twin = Desired.model_validate({"version": generation, "models": {MODEL: want}, **unknown})
        self.say("desired", twin.encode(), retain=True)
        return generation

    def say(self, channel: str, payload: bytes, *, retain: bool = False) -> None:
        self.connection.publish(topics.of(self._name, channel), payload, 1, retain)


class Subject(Protocol):
    """Who is held to the contract."""

    name: str

    def start(self) -> None: ...

    def stop(self) -> None:
        """End in order."""
        ...

    def crash(self) -> None:
        """End without a word; `start` begins anew on the same journal."""
        ...


class RealAgent:
    """`skerry-agent` as a process in its own directory."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._process = Process(directory)

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        if self._process.process is not None and self._process.process.poll() is None:
            assert self._process.stop() == 0, self._process.log()

    def crash(self) -> None:
        self._process.kill()


class Simulated:
    """A simulated device, its event loop on a thread."""

    def __init__(self, name: str, directory: Path, port: int) -> None:
        self.name = name
        self._directory = directory
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._device: ConnectedDevice | None = None

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> None:
        if self._device is not None:  # it had crashed
            self._device.device.restart()
            self._device.start()
            return
        behaviour = Behaviour(
            phase_s={p: Spread(0.05) for p in ("downloading", "verified", "staged", "activating")},
            metrics_interval_s=0,
            reconnect_first_s=0.2,
            reconnect_max_s=0.5,
        )
        broker = Broker("127.0.0.1", self._port, Trust(self._directory / "ca.pem"))
        self._device = ConnectedDevice(
            self.name, PROFILE, self._directory / "chain.pem", broker, hardware_of(PROFILE),
            behaviour,
        )  # fmt: skip
        self._device.start()

    def stop(self) -> None:
        if self._device is not None:
            asyncio.run_coroutine_threadsafe(self._device.stop(), self._loop).result(10)

    def crash(self) -> None:
        asyncio.run_coroutine_threadsafe(self._crash(), self._loop).result(10)

    async def _crash(self) -> None:
        assert self._device is not None
        await self._device.halt()

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@dataclass
class Subjects:
    """Makes subjects of one kind, each enrolled under a name of its own."""

    kind: str
    cloud: Cloud
    place: Path
    made: list[RealAgent | Simulated] = field(default_factory=list)

    def new(self, name: str) -> Subject:
        """An enrolled device; not started."""
        name = f"{name}-{self.kind}"
        directory = self.place / name
        self._enrol(name, directory)
        self.cloud.listen_to(name)
        subject: RealAgent | Simulated
        if self.kind == "real":
            subject = RealAgent(name, directory)
        else:
            subject = Simulated(name, directory, self.cloud.broker.port)
        self.made.append(subject)
        return subject

    def _enrol(self, name: str, directory: Path) -> None:
        services = self.cloud.services
        (directory / "roots").mkdir(parents=True)
        key = new_key()
        write_key(directory / "device.key", key)
        certificate = services.authority.issue_device(certificate_request(key), name)
        (directory / "device.pem").write_text(certificate.pem)
        (directory / "chain.pem").write_text(
            certificate.pem + (directory / "device.key").read_text()
        )
        (directory / "ca.pem").write_text(services.authority.certificate_pem)
        (directory / "roots" / "image.json").write_text(services.image_repository.root_json())
        (directory / "roots" / "director.json").write_text(services.director.root_json())
        member = Membership(
            device_id=name, profile=PROFILE, broker_host="127.0.0.1",
            broker_port=self.cloud.broker.port,
        )  # fmt: skip
        (directory / "device.json").write_bytes(member.encode())
        (directory / "agent.toml").write_text(
            "http_port = 0\nmetrics_interval_s = 3600\nreconnect_first_s = 0.2\n"
            "reconnect_max_s = 0.5\n"
        )
        with services.sessions.begin() as session:
            session.add(
                Device(
                    id=name, profile=PROFILE, labels={}, inventory={}, certificate_serial="1",
                    certificate_expires_at=0.0, enrolled_at=0.0, reported={}, desired={},
                )
            )  # fmt: skip


@pytest.fixture(scope="module")
def cloud(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Cloud]:
    api_port, broker_port = free_ports(2)
    settings = Settings(
        directory=tmp_path_factory.mktemp("cloud"), api_port=api_port, broker_port=broker_port
    )
    initialise(settings)
    services = open_services(settings)
    broker = Mosquitto.for_authority(
        settings.directory / "broker", services.authority, host="127.0.0.1", port=broker_port
    )
    broker.start()
    connection = Connection(
        host="127.0.0.1", port=broker_port, client_id="cloud",
        files=services.authority.client_files(),
        session_expiry_s=3600,  # a device may be back before us: the broker keeps what it says
    )  # fmt: skip
    delivery = Delivery(
        connection, services.blobs, services.image_repository.directory,
        services.director.directory, services.sessions,
    )  # fmt: skip
    made = Cloud(services, broker, connection)
    delivery.start()
    connection.start(10)
    yield made
    connection.stop()
    delivery.stop()
    broker.stop()
    services.sessions.kw["bind"].dispose()


@pytest.fixture(params=KINDS)
def subjects(request: pytest.FixtureRequest, cloud: Cloud, tmp_path: Path) -> Iterator[Subjects]:
    made = Subjects(request.param, cloud, tmp_path)
    yield made
    for each in made.made:
        if isinstance(each, Simulated):
            each.close()
        else:
            each.stop()
