"""The control plane's tables.

One schema for SQLite (WAL) and PostgreSQL.  Times are seconds since the epoch, UTC, as floats.
JSON columns hold what pydantic models dump; the rooms that own a table parse them back.

Append-only tables (never updated, never deleted): `inbox`, `promotions`, `labels`, `audit`,
`assignment_events`, `gate_decisions`, `predictor_points`.  `device_history` is append-only too, but
its oldest rows are dropped.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    UniqueConstraint,
    event,
    false,
    inspect,
    text,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cloud.devices.compact import compact

Json = dict[str, Any]


Big = BigInteger().with_variant(Integer, "sqlite")
"""Of numbers that outgrow 31 bits: what devices count, and rows that they write."""


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 (SQLAlchemy's form)


# ── projects, data, models ───────────────────────────────────────────────────────────────────────


class Project(Base):
    """A project as last applied; `code_sha` names the blob with its files (a deterministic tar)."""

    __tablename__ = "projects"
    name: Mapped[str] = mapped_column(primary_key=True)
    code_sha: Mapped[str]
    spec: Mapped[Json]
    applied_at: Mapped[float]


class DatasetVersion(Base):
    """Immutable.  `id` is the SHA-256 of the canonical manifest, which names its Parquet shards."""

    __tablename__ = "dataset_versions"
    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(index=True)
    stage: Mapped[str]  # collected | cleaned | labelled
    rows: Mapped[int]
    manifest: Mapped[Json]
    parent: Mapped[str | None]
    created_at: Mapped[float]


class Label(Base):
    """Append-only; the newest human label of a sample wins."""

    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(index=True)
    prediction_id: Mapped[str] = mapped_column(index=True)
    device: Mapped[str | None]
    label: Mapped[str]
    source: Mapped[str]  # correction | human | auto
    confidence: Mapped[float] = mapped_column(default=1.0)
    model_version: Mapped[int | None]
    at: Mapped[float]


class Sample(Base):
    """One input of the field.  `blob` names its tensors (zstd) in the blob store."""

    __tablename__ = "samples"
    id: Mapped[str] = mapped_column(primary_key=True)
    prediction_id: Mapped[str] = mapped_column(index=True)
    device: Mapped[str] = mapped_column(index=True)
    model: Mapped[str]
    version: Mapped[int]
    policy: Mapped[str]
    inclusion_prob: Mapped[float]
    taken_at: Mapped[float]
    received_at: Mapped[float]
    predicted: Mapped[str]
    header: Mapped[Json]
    blob: Mapped[str]
    __table_args__ = (Index("samples_window", "model", "policy", "taken_at"),)


class ModelVersion(Base):
    """A candidate, or once approved a release, of a model; `version` counts from 1 per model."""

    __tablename__ = "model_versions"
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    state: Mapped[str]  # candidate | approved | published | champion | rejected | retired
    dataset: Mapped[str]
    code_sha: Mapped[str]
    job: Mapped[str]
    parent_version: Mapped[int | None]
    metrics: Mapped[Json]  # accuracy of the selected variants, per profile and member
    environment: Mapped[Json]  # interpreter, packages, ISA
    created_at: Mapped[float]


class Variant(Base):
    """One optimised candidate of a version on a profile: the frontier's points."""

    __tablename__ = "variants"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str]
    version: Mapped[int]
    profile: Mapped[str]
    name: Mapped[str]  # member/recipe
    runtime: Mapped[str]
    verdict: Mapped[str]  # PASS | FAIL | INCONCLUSIVE | INVALID
    reason: Mapped[str]
    selected: Mapped[bool]
    measurement: Mapped[Json]
    accuracy: Mapped[Json]
    bundle_sha: Mapped[str | None]  # blob of its bundle; every candidate can be downloaded
    bundle_length: Mapped[int] = mapped_column(default=0)
    predicted: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Never measured on its profile: its latency is an estimate."""
    __table_args__ = (Index("variants_of", "model", "version", "profile"),)


class GateDecision(Base):
    """Append-only evidence: why a version passed, failed, or lacks data."""

    __tablename__ = "gate_decisions"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    subject: Mapped[str] = mapped_column(index=True)  # "model:digits:2" or "rollout:ID:wave:0"
    gate: Mapped[str]
    verdict: Mapped[str]  # pass | fail | insufficient
    reason: Mapped[str]
    evidence: Mapped[Json]
    at: Mapped[float]
    previous: Mapped[str] = mapped_column(default="", server_default="")
    sha256: Mapped[str] = mapped_column(default="", server_default="")
    keyid: Mapped[str] = mapped_column(default="", server_default="")
    signature: Mapped[str] = mapped_column(default="", server_default="")
    """Of rollouts' decisions (`cloud.orchestrator.evidence`); empty for those of models."""


class Promotion(Base):
    """Append-only history of a version's states."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(index=True)
    version: Mapped[int]
    from_state: Mapped[str]
    to_state: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str]
    at: Mapped[float]


class Release(Base):
    """A target of the image repository.  Counters grow per model and profile."""

    __tablename__ = "releases"
    target: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    version: Mapped[int]
    profile: Mapped[str]
    counter: Mapped[int]
    bundle_sha: Mapped[str]
    length: Mapped[int]
    info: Mapped[Json]  # edge_agent.wire.manifest.ReleaseInfo
    created_at: Mapped[float]
    awaiting: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Staged: no device can have it until offline keys have signed it."""
    __table_args__ = (UniqueConstraint("model", "profile", "counter"),)


# ── fleet ────────────────────────────────────────────────────────────────────────────────────────


class Claim(Base):
    __tablename__ = "claims"
    id: Mapped[str] = mapped_column(primary_key=True)
    secret_sha256: Mapped[str]
    profile: Mapped[str]
    labels: Mapped[Json]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    used_by: Mapped[str | None]
    revoked: Mapped[bool] = mapped_column(default=False)
    batch: Mapped[str] = mapped_column(default="", server_default="", index=True)
    """Name under which claims were made together; empty is none."""
    device: Mapped[str] = mapped_column(default="", server_default="")
    """The only name that it enrols; of a device that exists, it lets that one come back."""
    key_sha256: Mapped[str] = mapped_column(default="", server_default="")
    """Of the public key that it was used with: who has that key may ask again."""
    refusals: Mapped[int] = mapped_column(default=0, server_default="0")


class Certificate(Base):
    """Every certificate that a device was given, until some time after its end."""

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(primary_key=True)  # hexadecimal
    device: Mapped[str] = mapped_column(index=True)
    pem: Mapped[str]
    key_sha256: Mapped[str]
    issued_at: Mapped[float]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="", server_default="")
    enforced_at: Mapped[float | None]
    """When the broker was seen to refuse it; None: not yet, or it is not revoked."""
    __table_args__ = (
        # looked at twice a second, and nearly always empty
        Index(
            "certificates_pending",
            "revoked_at",
            sqlite_where=text("revoked_at IS NOT NULL AND enforced_at IS NULL"),
            postgresql_where=text("revoked_at IS NOT NULL AND enforced_at IS NULL"),
        ),
    )


def _facts(context: DefaultExecutionContext) -> Json:
    given: Json = context.get_current_parameters()  # type: ignore[no-untyped-call]
    return compact(given.get("inventory"), given.get("reported"))


class Device(Base):
    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(primary_key=True)
    profile: Mapped[str]
    labels: Mapped[Json]
    inventory: Mapped[Json]
    certificate_serial: Mapped[str]
    certificate_expires_at: Mapped[float]
    certificate_pem: Mapped[str] = mapped_column(default="", server_default="")
    """As issued; empty for devices that were enrolled before it was kept."""
    enrolled_at: Mapped[float]
    revoked: Mapped[bool] = mapped_column(default=False)
    revoked_reason: Mapped[str] = mapped_column(default="", server_default="")
    gateway: Mapped[str] = mapped_column(default="", server_default="", index=True)
    """The device that speaks for this one; empty: it speaks for itself, by its certificate."""
    online: Mapped[bool] = mapped_column(default=False)
    boot: Mapped[str] = mapped_column(default="")
    last_seen: Mapped[float] = mapped_column(default=0.0)
    reported: Mapped[Json]  # DeviceState as last reported
    desired: Mapped[Json]  # Desired as last set
    desired_version: Mapped[int] = mapped_column(default=0)
    changed_at: Mapped[float] = mapped_column(default=0.0, server_default="0", index=True)
    """When presence, report or revocation last changed; written by itself."""
    facts: Mapped[Json] = mapped_column(default=_facts, server_default="{}")
    """`compact` of inventory and reported: what queries ask; follows them by itself, unless they
    are written by an UPDATE that goes round the session."""


Index(
    "devices_scan",
    Device.id, Device.profile, Device.online, Device.revoked, Device.labels, Device.facts,
).ddl_if(dialect="sqlite")  # fmt: skip
# Holds all that lists filter by, so that they need not read devices' documents.  An index of the
# profile alone would be preferred to it, and lead to them.  In PostgreSQL they lie apart anyway,
# and no index takes JSON.


@event.listens_for(Device, "before_update")
def _note_change(_mapper: object, _connection: object, device: Device) -> None:
    attributes = inspect(device).attrs
    if any(attributes[name].history.has_changes() for name in ("online", "reported", "revoked")):
        device.changed_at = time.time()
    if any(attributes[name].history.has_changes() for name in ("inventory", "reported")):
        facts = compact(device.inventory, device.reported)
        if facts != device.facts:
            device.facts = facts


class DeviceGroup(Base):
    """A named set of devices: those that `query` means, or, where it is empty, its members."""

    __tablename__ = "device_groups"
    name: Mapped[str] = mapped_column(primary_key=True)
    query: Mapped[str]
    description: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[float]
    updated_at: Mapped[float]


class GroupMember(Base):
    __tablename__ = "group_members"
    group: Mapped[str] = mapped_column(ForeignKey("device_groups.name"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True, index=True)


class DeviceHistory(Base):
    """What became of a device's twin and presence, in order; the oldest rows are dropped."""

    __tablename__ = "device_history"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    device: Mapped[str]
    kind: Mapped[str]  # online | offline | desired | reported | labels
    at: Mapped[float]
    detail: Mapped[Json]
    __table_args__ = (Index("history_of", "device", "id"),)


class Inbox(Base):
    """What has been applied.  A row that exists is a message that was seen before."""

    __tablename__ = "inbox"
    device: Mapped[str] = mapped_column(primary_key=True)
    stream: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Big, primary_key=True)
    kind: Mapped[str]
    received_at: Mapped[float]


class Metric(Base):
    """Roll-up of a device's serving figures; one row a window."""

    __tablename__ = "metrics"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    device: Mapped[str]
    model: Mapped[str]
    version: Mapped[int]
    at: Mapped[float]
    report: Mapped[Json]  # edge_agent.wire.messages.MetricsReport
    __table_args__ = (
        Index("metrics_window", "model", "version", "at"),
        Index("metrics_device", "device", "model", "at"),
    )


class Outbox(Base):
    """Messages to publish, written in the transaction that causes them."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    topic: Mapped[str]
    payload: Mapped[bytes]
    retain: Mapped[bool]
    created_at: Mapped[float]
    published_at: Mapped[float | None] = mapped_column(index=True)
    expires_at: Mapped[float | None] = mapped_column(default=None)
    """When the message is worth nothing any more, for whoever still has it; None is never."""
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often it was refused."""
    retry_at: Mapped[float] = mapped_column(default=0.0, server_default="0")


class Rollout(Base):
    """The pure state is in `machine`, but for the assignments, which are rows.

    `state` repeats it for queries; `revision` grows with every change, so that whoever keeps the
    state in memory knows whether it is still true.
    """

    __tablename__ = "rollouts"
    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    version: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    plan: Mapped[Json]
    machine: Mapped[Json]
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    created_by: Mapped[str]
    created_at: Mapped[float]
    updated_at: Mapped[float]


class Assignment(Base):
    """One device's part in one rollout: `machine` is its pure state, the rest is for queries.

    Ingest writes a reported phase here at once; the machine's own is in `machine`.
    """

    __tablename__ = "assignments"
    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    generation: Mapped[int]
    wave: Mapped[int]
    target: Mapped[str]
    phase: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(default="")
    detail: Mapped[str] = mapped_column(default="")
    updated_at: Mapped[float]
    machine: Mapped[Json] = mapped_column(default=dict, server_default="{}")


class AssignmentEvent(Base):
    __tablename__ = "assignment_events"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(index=True)
    rollout: Mapped[str | None]
    report: Mapped[Json]  # edge_agent.wire.messages.UpdateReport
    at: Mapped[float]


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


class Command(Base):
    """One command to one device: `fleet.commands.machine.Course`, and what came of it.

    `certain` says that the device itself ended it; anything else may be corrected by its word.
    """

    __tablename__ = "commands"
    id: Mapped[str] = mapped_column(primary_key=True)
    batch: Mapped[str] = mapped_column(index=True)  # of all that were asked for together
    device: Mapped[str]
    name: Mapped[str]
    arguments: Mapped[Json]
    state: Mapped[str]  # fleet.commands.machine.CommandState
    certain: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str] = mapped_column(default="")
    detail: Mapped[str] = mapped_column(default="")
    result: Mapped[Json]
    boot: Mapped[str] = mapped_column(default="")  # the start of the agent that answered last
    created_by: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    timeout_s: Mapped[float]
    outbox: Mapped[int | None] = mapped_column(
        Big
    )  # the message that carries it, until the broker has it
    attempts: Mapped[int] = mapped_column(default=0)
    sent_at: Mapped[float | None]
    accepted_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    attachment: Mapped[Json]  # edge_agent.wire.commands.Attachment, once it is whole
    blob: Mapped[str | None]
    __table_args__ = (
        Index("commands_of_device", "device", "created_at"),
        Index("commands_by_state", "state", "created_at"),
    )


class CommandPart(Base):
    """A piece of an attachment that is not whole yet; removed once it is, or never will be."""

    __tablename__ = "command_parts"
    command: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    attachment: Mapped[Json]
    data: Mapped[bytes]
    received_at: Mapped[float] = mapped_column(index=True)


# ── measuring on devices ─────────────────────────────────────────────────────────────────────────


class LabBlob(Base):
    """A bundle or samples that lab devices may be ordered to fetch; the bytes are blobs."""

    __tablename__ = "lab_blobs"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]  # bundle | samples
    profile: Mapped[str]  # of a bundle; empty for samples
    length: Mapped[int]
    info: Mapped[Json]  # edge_agent.wire.lab.LabInfo
    created_at: Mapped[float]


class LabOrder(Base):
    """One measurement on one device.  A row in a final state never changes again."""

    __tablename__ = "lab_orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(index=True)
    profile: Mapped[str]
    state: Mapped[str]  # sent | accepted | downloading | measuring, or final: done | failed |
    # refused | aborted | expired | cancelled
    order: Mapped[bytes]  # the exact bytes whose digest the director signs
    order_sha256: Mapped[str]
    blobs: Mapped[list[Any]]  # digests of every `LabBlob` that it names
    detail: Mapped[str] = mapped_column(default="")
    result: Mapped[Json]  # edge_agent.wire.lab.MeasureResult, once verified
    signature: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    updated_at: Mapped[float]


class PredictorPoint(Base):
    """Append-only: what a variant was predicted to take on a profile, and what a device took."""

    __tablename__ = "predictor_points"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    profile: Mapped[str] = mapped_column(index=True)
    runtime: Mapped[str]
    precision: Mapped[str]
    variant: Mapped[str]
    device: Mapped[str]
    scaled_ms: Mapped[float]  # the local latency, scaled by the profiles' figures alone
    measured_ms: Mapped[float]
    at: Mapped[float]


# ── learning, operation ──────────────────────────────────────────────────────────────────────────


class DriftReport(Base):
    __tablename__ = "drift_reports"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(index=True)
    version: Mapped[int]
    scope: Mapped[str]  # "fleet" or a device's id
    verdict: Mapped[str]  # ok | drift | insufficient
    statistic: Mapped[float]
    threshold: Mapped[float]
    n: Mapped[int]
    detail: Mapped[Json]
    at: Mapped[float]


class Job(Base):
    """What people see of a durable workflow; `id` is the workflow's id."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    project: Mapped[str]
    state: Mapped[str]  # queued | running | succeeded | failed | cancelled
    step: Mapped[str] = mapped_column(default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    params: Mapped[Json]
    result: Mapped[Json]
    error: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float]
    updated_at: Mapped[float]


class StepResult(Base):
    """Finished steps by the hash of their code, config and inputs: the same work is done once."""

    __tablename__ = "step_results"
    key: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[str]
    result: Mapped[Json]
    created_at: Mapped[float]


class Token(Base):
    """API tokens; only the digest of their 256 random bits is kept."""

    __tablename__ = "tokens"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]  # viewer | operator | admin
    created_at: Mapped[float]
    revoked: Mapped[bool] = mapped_column(default=False)


class AuditEntry(Base):
    """Hash-chained: `sha256` covers `previous` and the entry's canonical JSON."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    at: Mapped[float]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[Json]
    previous: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)


class Setting(Base):
    """Small control-plane facts: leases, high-water marks."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Json]
    updated_at: Mapped[float]


INGEST_HEARTBEAT = "ingest.connected"
"""Setting in which ingest says, every few seconds, whether the broker has it."""
