"""A control plane without processes: real database, blobs, signing; a broker's stand-in that
checks, at each desired twin it is given, what the director had signed by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.broker.outgoing import NotConnected, Outgoing, PublishRefused
from cloud.db.engine import Sessions
from cloud.db.tables import (
    Assignment,
    AssignmentEvent,
    Device,
    ModelVersion,
    Outbox,
    Release,
    Rollout,
)
from cloud.errors import OperatorError
from cloud.orchestrator import Orchestrator, OutboxPublisher, command_rollout, create_rollout
from cloud.publish import publish_release
from cloud.signing import (
    Director,
    DirectorTarget,
    ImageRepository,
    KeyStore,
    LabAssignment,
    init_keys,
)
from cloud.signing.evidence import EvidenceKey
from edge_agent.wire import topics
from edge_agent.wire.manifest import trial_path
from edge_agent.wire.messages import Desired, Phase, UpdateReport
from fleet.client.schemas import RolloutIn, WaveIn

MODEL = "digits"


@dataclass
class RecordingPublisher:
    """Takes messages as a broker would; `fail_after` messages it loses its connection."""

    director: Director
    sent: list[tuple[str, bytes, bool]] = field(default_factory=list)
    fail_after: int | None = None

    refused: set[str] = field(default_factory=set)
    """Devices whose messages the broker refuses."""

    def publish_all(self, messages: Sequence[Outgoing]) -> list[OperatorError | None]:
        return [self._take(message) for message in messages]

    def _take(self, message: Outgoing) -> OperatorError | None:
        if self.fail_after is not None and len(self.sent) >= self.fail_after:
            return NotConnected("no connection to the broker")
        address = topics.parse(message.topic)
        if address.device in self.refused:
            return PublishRefused(f"{message.topic}: not authorized")
        if address.channel == "desired":
            desired = Desired.decode(message.payload)
            wanted = {model.target for model in desired.models.values()}
            wanted |= {trial_path(trial.target) for trial in desired.trials.values()}
            signed = set(self.director.assigned(address.device))
            assert wanted <= signed, "published before it was signed"
        self.sent.append((message.topic, message.payload, message.retain))
        return None

    def twin(self, device: str) -> Desired | None:
        """The retained twin of a device."""
        for topic, payload, _ in reversed(self.sent):
            if topic == topics.desired(device):
                return Desired.decode(payload)
        return None


@dataclass
class Plane:
    """The control plane, and the devices' side of it as ingest would write it."""

    sessions: Sessions
    blobs: Blobs
    director: Director
    image_repository: ImageRepository
    evidence_key: EvidenceKey
    publisher: RecordingPublisher
    now: float = 1_800_000_000.0
    orchestrator: Orchestrator = field(init=False)
    outbox: OutboxPublisher = field(init=False)

    def __post_init__(self) -> None:
        self.outbox = self.new_publisher("first")
        self.orchestrator = self.new_orchestrator("first")

    def new_orchestrator(self, holder: str) -> Orchestrator:
        return Orchestrator(
            self.sessions,
            self.blobs,
            self.director,
            self.image_repository,
            self.evidence_key,
            holder=holder,
            lease_clock=lambda _session: self.now,
        )

    def new_publisher(self, holder: str) -> OutboxPublisher:
        return OutboxPublisher(
            self.sessions, self.director, holder=holder, clock=lambda _session: self.now
        )

    def turn(self, seconds: float = 1.0) -> None:
        """Time passes, one turn, and everything published."""
        self.now += seconds
        assert self.orchestrator.turn(self.now).leader
        assert self.outbox.turn(self.publisher, self.now) is not None

    def release(self, version: int, *profiles: str, state: str = "published") -> None:
        with self.sessions.begin() as session:
            if session.get(ModelVersion, (MODEL, version)) is None:
                session.add(_version(version, state, self.now))
                session.flush()
            for profile in profiles or ("pi",):
                data = f"bundle of {version} on {profile}".encode() * 100
                release = publish_release(
                    session,
                    self.blobs,
                    self.image_repository,
                    MODEL,
                    version,
                    profile,
                    self.blobs.put(data),
                )
                release.created_at = self.now

    def enrol(self, *ids: str, profile: str = "pi", labels: dict[str, str] | None = None) -> None:
        with self.sessions.begin() as session:
            for device in ids:
                session.add(_device(device, profile, labels or {}, self.now))

    def start(self, version: int, waves: Sequence[WaveIn] | None = None, **fields: object) -> str:
        request = RolloutIn.model_validate(
            {
                "model": MODEL,
                "version": version,
                "waves": waves or [WaveIn(percent=100, soak_s=5)],
                "phase_timeout_s": 100,
                "on_failure": "halt",
                **fields,
            }
        )
        with self.sessions.begin() as session:
            return create_rollout(session, request, "ana", now=self.now).id

    def command(self, rollout: str, verb: str) -> str:
        with self.sessions.begin() as session:
            return command_rollout(session, rollout, verb, "ana", now=self.now).state

    def report(self, device: str, phase: Phase, reason: str = "") -> None:
        """The device reports on what its retained twin names; written as ingest writes it."""
        twin = self.publisher.twin(device)
        assert twin is not None
        want = twin.models[MODEL]
        report = UpdateReport(
            model=MODEL,
            target=want.target,
            version=want.version,
            counter=want.counter,
            generation=want.generation,
            rollout=want.rollout,
            phase=phase,
            reason=reason,
        )
        with self.sessions.begin() as session:
            session.add(
                AssignmentEvent(
                    device=device,
                    rollout=want.rollout,
                    report=report.model_dump(mode="json"),
                    at=self.now,
                )
            )
            if want.rollout is None:
                return
            mine = session.get(Assignment, (want.rollout, device))
            if mine is not None and mine.generation == want.generation:
                mine.phase, mine.reason = phase, reason

    def state(self, rollout: str) -> str:
        return self.row(rollout).state

    def row(self, rollout: str) -> Rollout:
        with self.sessions() as session:
            return session.get_one(Rollout, rollout)

    def phases(self, rollout: str) -> dict[str, str]:
        with self.sessions() as session:
            rows = session.scalars(select(Assignment).where(Assignment.rollout == rollout))
            return {row.device: row.phase for row in rows}

    def version_state(self, version: int) -> str:
        with self.sessions() as session:
            return session.get_one(ModelVersion, (MODEL, version)).state

    def waiting(self, session: Session) -> int:
        return len(session.scalars(select(Outbox).where(Outbox.published_at.is_(None))).all())

    def counters(self, version: int) -> list[int]:
        with self.sessions() as session:
            rows = session.scalars(
                select(Release).where(Release.version == version).order_by(Release.counter)
            )
            return [row.counter for row in rows]

    def complete(self, version: int, *devices: str) -> str:
        """Roll `version` out to everybody, with success."""
        rollout = self.start(version)
        self.turn()
        for device in devices:
            self.report(device, "healthy")
        self.turn()
        self.turn(6)
        assert self.state(rollout) == "COMPLETED"
        return rollout


class CrashingDirector(Director):
    """The real director, whose process dies before (or after) it signs for some device."""

    crash_on: str | None = None
    after: bool = False

    def assign_all(
        self, sets: Mapping[str, tuple[Sequence[DirectorTarget], Sequence[LabAssignment]]]
    ) -> None:
        if self.crash_on not in sets:
            super().assign_all(sets)
            return
        before = list(sets)[: list(sets).index(self.crash_on) + self.after]
        super().assign_all({device: sets[device] for device in before})
        raise KeyboardInterrupt  # as a killed process: nothing catches it


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return init_keys(tmp_path_factory.mktemp("keys"), "passphrase")


@pytest.fixture(scope="session")
def evidence_key(tmp_path_factory: pytest.TempPathFactory) -> EvidenceKey:
    return EvidenceKey.create(tmp_path_factory.mktemp("evidence"), "passphrase")


@pytest.fixture
def plane(
    tmp_path: Path, keys: KeyStore, evidence_key: EvidenceKey, sessions: Sessions, blobs: Blobs
) -> Plane:
    director = CrashingDirector(tmp_path / "director", keys)
    return Plane(
        sessions=sessions,
        blobs=blobs,
        director=director,
        image_repository=ImageRepository(tmp_path / "image", keys),
        evidence_key=evidence_key,
        publisher=RecordingPublisher(director),
    )


def _version(version: int, state: str, at: float) -> ModelVersion:
    return ModelVersion(
        model=MODEL,
        version=version,
        project="digits",
        state=state,
        dataset="",
        code_sha="",
        job=f"job-{version}",
        parent_version=None,
        metrics={},
        environment={},
        created_at=at,
    )


def _device(device: str, profile: str, labels: dict[str, str], at: float) -> Device:
    return Device(
        id=device,
        profile=profile,
        labels=labels,
        inventory={},
        certificate_serial="1",
        certificate_expires_at=at + 1e6,
        enrolled_at=at,
        online=True,
        boot="b",
        last_seen=at,
        reported={},
        desired={},
        desired_version=0,
    )
