"""A signing simulator: the real repositories, publisher and delivery, over an in-memory bus."""

from __future__ import annotations

import queue
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.orm import sessionmaker

from cloud.blobs import Blobs
from cloud.db.engine import open_engine
from cloud.db.tables import Device, Release
from cloud.delivery import Delivery
from cloud.publish import build_bundle, director_target, publish_release
from cloud.signing import Director, ImageRepository, KeyStore, init_keys
from edge_agent.update.install import Installer
from edge_agent.update.journal import Journal
from edge_agent.update.ports import Event, HealthSample, NotFound, TransferError
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.store import SlotStore
from edge_agent.update.transfer import Transfer
from edge_agent.update.trust import Trust
from edge_agent.update.updater import Updater
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.manifest import Limits, Manifest, ModelSpec, StepSpec, TensorSpec
from edge_agent.wire.messages import (
    ChunkReply,
    ChunkRequest,
    Desired,
    DesiredModel,
    FetchReply,
    FetchRequest,
    UpdateReport,
)

PROFILE = "this-machine"
IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 4))
SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 4))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Bus:
    """Hands what delivery publishes to the device that the topic names."""

    def __init__(self) -> None:
        self.inboxes: dict[str, Callable[[str, bytes], None]] = {}
        self.tamper: Callable[[str, bytes], bytes | None] = lambda topic, payload: payload

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None]) -> None:
        raise NotImplementedError("the tests call Delivery.handle")

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        tampered = self.tamper(topic, payload)
        address = topics.parse(topic)
        if tampered is not None and address.device in self.inboxes:
            self.inboxes[address.device](address.channel, tampered)


class World:
    """A control plane without broker or API."""

    def __init__(self, directory: Path, keys: KeyStore, migrated: Path) -> None:
        self.directory = directory
        self.clock = Clock(time.time())
        self.keys = keys
        self.image = ImageRepository(directory / "image", keys, self.clock)
        self.director = Director(directory / "director", keys, self.clock)
        self.blobs = Blobs((directory / "blobs").as_uri())
        shutil.copy(migrated, directory / "skerry.db")
        engine = open_engine(f"sqlite:///{directory / 'skerry.db'}")
        self.sessions = sessionmaker(engine, expire_on_commit=False)
        self.bus = Bus()
        self.delivery = Delivery(
            self.bus, self.blobs, directory / "image", directory / "director", self.sessions
        )
        self.down = False
        self.requests: list[str] = []

    def enrol(self, device_id: str, profile: str = PROFILE) -> None:
        with self.sessions.begin() as session:
            session.add(
                Device(
                    id=device_id, profile=profile, labels={}, inventory={}, reported={},
                    desired={}, certificate_serial="1", certificate_expires_at=0.0,
                    enrolled_at=0.0,
                )
            )  # fmt: skip

    def bundle(
        self,
        version: int,
        files: dict[str, bytes],
        *,
        profile: str = PROFILE,
        limits: Limits | None = None,
        manifest: Manifest | None = None,
    ) -> str:
        """Blob of a bundle with these files."""
        source = self.directory / f"source-{version}-{time.monotonic_ns()}"
        source.mkdir()
        for name, data in files.items():
            (source / name).write_bytes(data)
        manifest = manifest or Manifest(
            model="digits", version=version, profile=profile, variant="small/fp32",
            inputs=(IMAGE,), outputs=(SCORES,), pipeline=(StepSpec(name="model"),),
            network=ModelSpec(
                runtime="onnxruntime", file="model.onnx", inputs=(IMAGE,), outputs=(SCORES,)
            ),
            golden="golden.npz" if "golden.npz" in files else None,
            limits=limits or Limits(), files=(),
        )  # fmt: skip
        return self.blobs.put(build_bundle(source, manifest))

    def release(self, version: int, bundle_sha: str, profile: str = PROFILE) -> Release:
        with self.sessions.begin() as session:
            return publish_release(
                session, self.blobs, self.image, "digits", version, profile, bundle_sha
            )

    def assign(
        self, device_id: str, release: Release, generation: int, probation_s: float = 10.0
    ) -> Desired:
        """Sign the assignment; returns the twin that hints at it."""
        self.director.assign(
            device_id,
            [director_target(release, generation=generation, probation_s=probation_s)],
        )
        return desired(release, generation)


def desired(release: Release, generation: int) -> Desired:
    model = DesiredModel(
        target=release.target,
        version=release.version,
        counter=release.counter,
        generation=generation,
        rollout="r-1",
    )
    return Desired(version=generation, models={release.model: model})


class Chunks:
    """The device's chunk port."""

    def __init__(self, world: World, device_id: str) -> None:
        self.replies: queue.Queue[tuple[ChunkReply, bytes]] = queue.Queue()
        self._world, self._device_id = world, device_id
        self.requested: list[int] = []

    def request(self, request: ChunkRequest) -> None:
        bits = int(request.bitmap, 16)
        self.requested += [request.first + bit for bit in range(64) if bits >> bit & 1]
        if not self._world.down:
            topic = topics.chunk_request(self._device_id)
            self._world.delivery.handle(topic, request.encode())


@dataclass
class Tried:
    """What is tried beside the versions that serve, in place of a data plane."""

    now: dict[str, tuple[Path, str, float]] = field(default_factory=dict)
    """Model → directory, mode, share."""
    loads: int = 0
    refuse: Exception | None = None
    """Raised by the next `begin`."""
    samples: list[HealthSample] = field(default_factory=list)

    def begin(self, model: str, directory: Path, mode: str, share: float, salt: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.loads += 1
        self.now[model] = directory, mode, share

    def change(self, model: str, mode: str, share: float) -> None:
        self.now[model] = self.now[model][0], mode, share

    def end(self, model: str) -> None:
        self.now.pop(model, None)

    def health(self, model: str) -> HealthSample | None:
        return self.samples.pop(0) if self.samples else None

    def recheck(self, model: str) -> None:
        assert model in self.now


@dataclass
class DeviceUnderTest:
    """An updater with everything real but transport, self-test and serving."""

    world: World
    id: str
    directory: Path
    serving: dict[str, Path] = field(default_factory=dict)
    reports: list[UpdateReport] = field(default_factory=list)
    selftest: SelfTestResult = field(default_factory=lambda: SelfTestResult(True, "", 0.0))
    health: list[HealthSample] = field(default_factory=list)
    refuse_to_activate: set[str] = field(default_factory=set)
    """Digests of bundles that raise when they are activated."""
    profile: str = PROFILE
    roots: tuple[str, str] | None = None
    event: Event = lambda name, fields: None
    tried: Tried = field(default_factory=Tried)

    def __post_init__(self) -> None:
        self.chunks = Chunks(self.world, self.id)
        self._fetched: dict[int, bytes] = {}
        self._status = "ok"
        self.world.bus.inboxes[self.id] = self._receive
        self.boot()

    def boot(self) -> None:
        """Start the agent's update part, as after a power cycle."""
        self.ticks = 0.0
        image_root, director_root = self.roots or (
            self.world.image.root_json(),
            self.world.director.root_json(),
        )
        self.roots = (image_root, director_root)
        self.store = SlotStore(self.directory / "update")
        self.trust = Trust(
            self.directory / "trust", self.fetch, self.id, self.profile, self.world.clock,
            image_root=image_root, director_root=director_root,
        )  # fmt: skip
        downloads = self.directory / "update" / "downloads"
        self.transfer = Transfer(
            self.chunks, downloads, retry_cap=3, reply_timeout_s=0.05, stall_timeout_s=0.6
        )
        self.journal = Journal(self.directory / "update" / "journal.sqlite")
        self.updater = Updater(
            store=self.store,
            trust=self.trust,
            obtain=Installer(self.store, self.transfer, self.fetch, downloads),
            journal=self.journal,
            activate=self._activate,
            deactivate=lambda model: self.serving.pop(model) and None,
            report=self.reports.append,
            health=lambda model: self.health.pop(0) if self.health else None,
            event=self.event,
            selftest=lambda slot: self.selftest,
            clock=lambda: self.ticks,
            wait=self._wait,
            beside=self.tried,
        )
        self.serving.clear()
        self.tried.now.clear()
        self.updater.restore()

    def power_off(self) -> None:
        self.store.close()
        self.trust.close()
        self.journal.close()

    def apply(self, twin: Desired) -> bool:
        self.updater.submit(twin)
        return self.updater.apply(twin)

    def phases(self) -> list[str]:
        return [report.phase for report in self.reports]

    def served_version(self) -> int | None:
        path = self.serving.get("digits")
        if path is None:
            return None
        return Manifest.decode((path / "manifest.json").read_bytes(), limit=1 << 20).version

    def fetch(self, path: str) -> bytes:
        self.world.requests.append(path)
        if self.world.down:
            raise TransferError("timed out")
        self._fetched, self._status = {}, "lost"
        request = FetchRequest(id="1", path=path)
        self.world.delivery.handle(topics.fetch_request(self.id), request.encode())
        if self._status == "not_found":
            raise NotFound(path)
        if self._status != "ok":
            raise TransferError(self._status)
        return b"".join(self._fetched[part] for part in sorted(self._fetched))

    def _receive(self, channel: str, payload: bytes) -> None:
        if channel == "chunk/reply":
            chunk, data = unpack_frame(payload, ChunkReply)
            self.chunks.replies.put((chunk, bytes(data)))
        else:
            reply, data = unpack_frame(payload, FetchReply)
            self._status = reply.status
            self._fetched[reply.part] = bytes(data)

    def _activate(self, model: str, path: Path) -> None:
        if path.name in self.refuse_to_activate:
            raise RuntimeError("does not load")
        self.serving[model] = path

    def _wait(self, seconds: float) -> bool:
        self.ticks += seconds
        return False


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return init_keys(tmp_path_factory.mktemp("keys"), "passphrase")


@pytest.fixture
def world(tmp_path: Path, keys: KeyStore, migrated: Path) -> Iterator[World]:
    world = World(tmp_path / "cloud", keys, migrated)
    yield world
    world.sessions.kw["bind"].dispose()


@pytest.fixture
def device(world: World, tmp_path: Path) -> Iterator[DeviceUnderTest]:
    world.enrol("dev-1")
    device = DeviceUnderTest(world, "dev-1", tmp_path / "dev-1")
    yield device
    device.power_off()


def payload(seed: int, length: int = 300_000) -> bytes:
    """Incompressible bytes, so that a bundle has several chunks."""
    return random.Random(seed).randbytes(length)


@pytest.fixture
def weights() -> Callable[[int], dict[str, bytes]]:
    """Files of a bundle that no runtime needs to open."""
    return lambda seed: {"model.onnx": payload(seed)}
