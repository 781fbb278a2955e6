"""What the public API says, in types: the API answers with these, client and console read them.

Times are seconds since the epoch, UTC.  Answers may grow fields that an older client passes over;
a request with a field that nobody reads is refused, because a setting that is silently ignored may
be a safety limit.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from edge_agent.wire.ids import Digest, Slug
from edge_agent.wire.lab import MAX_ORDER_S

Json = dict[str, Any]
LABEL_KEY_PATTERN = r'^[^"\\=\x00-\x1f]{1,64}$'
Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=LABEL_KEY_PATTERN)],
        Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{0,200}$")],
    ],
    Field(max_length=32),
]
RowNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A number that every database can hold."""
OrderId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
MAX_PROBATION_S: Final = 7 * 86_400.0
MAX_SOAK_S: Final = 30 * 86_400.0
MAX_WAVES: Final = 20
MAX_EPOCH_S: Final = 253402300799.0
"""The last second that calendars of four-digit years hold."""
Role = Literal["viewer", "operator", "admin"]


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ApiRequest(BaseModel):
    """Base of what callers send.  NaN and infinity are refused: they slip through comparisons."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Problem(ApiModel):
    """Body of every error: what is wrong, where, and what to do, in one line."""

    error: str


class Page(ApiModel):
    """One page of a list.  `total` counts all that match."""

    total: int
    offset: int


class Overview(ApiModel):
    devices: int
    online: int
    models: int
    rollouts_running: int
    jobs_running: int
    drifting: int
    samples: int
    broker_connected: bool
    version: str


class DeviceOut(ApiModel):
    id: str
    profile: str
    labels: dict[str, str]
    online: bool
    revoked: bool
    revoked_reason: str = ""
    last_seen: float
    enrolled_at: float
    agent_version: str = ""
    models: dict[str, Json] = Field(default_factory=dict)
    """Per model: version, phase, variant, detail (edge_agent.wire.messages.ModelState)."""


class DeviceDetail(DeviceOut):
    inventory: Json
    profile_gaps: list[str] = Field(default_factory=list)
    """What the hardware profile asks for and the inventory does not have."""
    reported: Json
    desired: Json
    desired_version: int = 0
    """Version of `desired`; the device has seen `reported["desired_version"]`."""
    changes: list[Json] = Field(default_factory=list)
    """Newest first: `kind`, `at` and `detail` of what became of twin, presence, labels, inventory
    (`fleet.client.registry_schemas.HistoryOut`)."""
    certificate_expires_at: float
    history: list[Json] = Field(default_factory=list)
    """Newest first: `at`, and an UpdateReport's fields."""
    metrics: list[Json] = Field(default_factory=list)
    """Newest first: `at`, and a MetricsReport's fields."""
    uplink: list[Json] = Field(default_factory=list)
    """Per journal of the device: `stream`, `received` messages, `last_seq`; equal: none lacks."""
    alarms: list[Json] = Field(default_factory=list)
    """Newest first: `at`, `action` of the audit ("device.identity_cloned": two machines use this
    device's key), and `detail`."""


class DevicePage(Page):
    items: list[DeviceOut]


class ClaimIn(ApiRequest):
    profile: str = ""
    """May be left out for a `device` that exists, which keeps its own."""
    labels: Labels = Field(default_factory=dict)
    ttl_s: float = Field(default=86400.0, gt=0, le=90 * 86400)
    count: int = Field(default=1, ge=1, le=10000)
    batch: Slug | None = None
    """Name under which these claims are listed and revoked together."""
    device: Slug | None = None
    """The only name that the claim enrols; a device that exists comes back by it."""


class ClaimOut(ApiModel):
    id: str
    profile: str
    labels: dict[str, str]
    created_at: float
    expires_at: float
    used_by: str | None
    revoked: bool
    batch: str = ""
    device: str = ""


class VariantOut(ApiModel):
    id: int
    profile: str
    name: str
    runtime: str
    verdict: str
    reason: str
    selected: bool
    measurement: Json
    accuracy: Json
    bundle_sha: str | None
    bundle_length: int
    predicted: bool = False
    """Never measured on its profile: its latency is an estimate."""


class GateOut(ApiModel):
    gate: str
    verdict: Literal["pass", "fail", "insufficient"]
    reason: str
    evidence: Json
    at: float


class ModelOut(ApiModel):
    model: str
    version: int
    project: str
    state: str
    dataset: str
    code_sha: str
    job: str
    parent_version: int | None
    metrics: Json
    environment: Json
    created_at: float


class ModelDetail(ModelOut):
    variants: list[VariantOut]
    gates: list[GateOut]
    promotions: list[Json]
    releases: list[Json]


class ApprovalIn(ApiRequest):
    reason: str = Field(default="", max_length=1000)


class PublishIn(ApiRequest):
    """Which candidate to publish per profile; profiles left out take the selected one."""

    variants: dict[str, RowNumber] = Field(default_factory=dict)
    """Profile → variant id."""
    allow_predicted: bool = False
    """Publish variants that were never measured on their profile too; the audit shows it."""


class ExportIn(ApiRequest):
    """For which devices to export; `model` empty is everything that they are assigned."""

    devices: list[str] = Field(min_length=1, max_length=1000)
    model: str = Field(default="", max_length=64)


class ExportBlob(ApiModel):
    """One blob to copy to `path`; `target` is a release that it belongs to."""

    path: str
    target: str
    sha256: str
    length: int


class ExportedRelease(ApiModel):
    device: str
    model: str
    version: int


class ExportOut(ApiModel):
    """`files`: path → text, in the order to write them; after `expires_at` devices refuse them."""

    created_at: float
    expires_at: float
    files: dict[str, str]
    blobs: list[ExportBlob]
    releases: list[ExportedRelease]


class WaveIn(ApiRequest):
    """Size of a wave: `count` devices, `percent` of those left, or those that match `query`."""

    count: int | None = Field(default=None, ge=1)
    percent: float | None = Field(default=None, gt=0, le=100)
    query: str | None = Field(default=None, min_length=1, max_length=2000)
    soak_s: float = Field(default=30.0, ge=0, le=MAX_SOAK_S)


class GroupIn(ApiRequest):
    """Versions of several models that a device installs all or none."""

    versions: dict[Slug, RowNumber] = Field(min_length=2, max_length=32)
    """Model → version."""
    probation_s: float = Field(default=10.0, ge=0, le=MAX_PROBATION_S)


class AssignedOut(ApiModel):
    model: str
    version: int
    target: str
    generation: int
    group: str


class RolloutIn(ApiRequest):
    model: str
    version: RowNumber
    profiles: list[str] = Field(default_factory=list, max_length=200)
    """Empty: every profile that the version has a release for."""
    labels: Labels = Field(default_factory=dict)
    """Only devices that carry all of these."""
    query: str = Field(default="", max_length=2000)
    """Only devices that match (`fleet.devices.query`); empty: all."""
    waves: list[WaveIn] = Field(
        default_factory=lambda: [WaveIn(percent=100)], min_length=1, max_length=MAX_WAVES
    )
    min_responders: int = Field(default=1, ge=1)
    max_failure_rate: float = Field(default=0.1, gt=0, lt=1)
    gates: dict[str, float | bool] = Field(default_factory=dict, max_length=32)
    """Further thresholds by their names in `fleet.rollouts.model.GateSpec`."""
    probation_s: float = Field(default=10.0, ge=0, le=MAX_PROBATION_S)
    phase_timeout_s: float = Field(default=300.0, gt=0, le=MAX_PROBATION_S)
    start_at: float = Field(default=0.0, ge=0, le=MAX_EPOCH_S)
    """Not before this time."""
    windows: list[str] = Field(default_factory=list, max_length=50)
    """Spans of the week in which devices are offered the version: "Mon-Fri 22:00-05:00"."""
    time_zone: str = Field(default="UTC", max_length=64)
    """Whose clock the windows mean: an IANA name such as "Asia/Seoul"."""
    needs_approval: bool = False
    """A second person must approve it before it starts; policies may ask for that anyway."""
    approve_each_wave: bool = False
    """A second person must approve each wave before it is offered."""
    on_failure: Literal["rollback", "halt"] = "rollback"
    """What a failed gate does: give every device back what it had, or only stop."""
    mode: Literal["replace", "ab", "shadow"] = "replace"
    """"ab" and "shadow" try the version beside the one that serves (docs/guides/trials.md)."""
    share: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    """Of the requests, that a version under trial answers or computes."""


class RolloutOut(ApiModel):
    id: str
    model: str
    version: int
    state: str
    reason: str = ""
    created_by: str
    created_at: float
    updated_at: float
    waves: list[Json]
    """`index`, `state`, `devices`, `healthy`, `failed`, `pending`, `unreachable`, `phases` (phase →
    devices), `what` (its size as planned), `approved_by`, `soak_s`, `started_at`, `settled_at`,
    `ended_at`, `reason`."""


class RolloutDetail(RolloutOut):
    plan: Json
    assignments: list[Json]
    """`device`, `wave`, `phase`, `reason`, `detail`, `generation`, `updated_at`: the first 200 of
    those that need a look most; `fleet.client.rollout_schemas.AssignmentPage` has all."""
    gates: list[GateOut]
    verbs: dict[str, str] = Field(default_factory=dict)
    """What the caller may ask for now: verb → "", or why not."""


class LabDeviceOut(ApiModel):
    """A device that measurements can be asked of; `problem` says why not now, empty when it can."""

    id: str
    profile: str
    problem: str = ""
    inventory: Json


class LabBlobOut(ApiModel):
    sha256: str
    kind: Literal["bundle", "samples"]
    length: int


class LabOrderIn(ApiRequest):
    """One measurement on one device; fields as in `edge_agent.wire.lab.MeasureOrder`."""

    id: OrderId | None = None
    """Drawn by the caller, so that asking again after a lost answer orders nothing twice."""
    device: Slug
    candidate: Digest
    """SHA-256 of an uploaded bundle of the device's profile, as are `samples` and
    `compare_with`."""
    samples: Digest
    compare_with: Digest | None = None
    latency_ms: float | None = Field(default=None, gt=0)
    percentile: float = Field(default=0.99, gt=0, lt=1)
    qps: float | None = Field(default=None, gt=0)
    cost: bool = True
    memory: bool = True
    settings: Json = Field(default_factory=dict)
    server_settings: Json = Field(default_factory=dict)
    timeout_s: float = Field(default=900.0, ge=1, le=MAX_ORDER_S)
    """The device gives up, and the order runs out, after this."""


class LabOrderOut(ApiModel):
    """`state`: sent, accepted, downloading, measuring; then done, failed, refused, aborted,
    expired or cancelled, and `ended` is true.  `result` is the signed `MeasureResult`."""

    id: str
    device: str
    profile: str
    state: str
    ended: bool
    detail: str
    result: Json
    created_at: float
    expires_at: float
    updated_at: float


class PredictorPointIn(ApiRequest):
    """What a variant was predicted to take by figures alone, and what a device took."""

    order: str
    """The measurement, which has ended well."""
    runtime: str = Field(max_length=40)
    precision: str = Field(max_length=40)
    variant: str = Field(max_length=200)
    scaled_ms: float = Field(gt=0)


class PredictorPointOut(ApiModel):
    profile: str
    runtime: str
    precision: str
    variant: str
    device: str
    scaled_ms: float
    measured_ms: float
    at: float


class DriftOut(ApiModel):
    model: str
    version: int
    scope: str
    verdict: Literal["ok", "drift", "insufficient"]
    statistic: float
    threshold: float
    n: int
    detail: Json
    at: float


class CollectionOut(ApiModel):
    """What has been collected: how much, from where, of which class."""

    total: int
    by_policy: dict[str, int]
    by_device: dict[str, int]
    by_predicted: dict[str, int]
    labelled: int
    corrections: int


class JobIn(ApiRequest):
    kind: Literal["build", "retrain"]
    project: str
    params: Json = Field(default_factory=dict)


class JobOut(ApiModel):
    id: str
    kind: str
    project: str
    state: str
    step: str
    progress: float
    params: Json
    result: Json
    error: str
    created_at: float
    updated_at: float


class ProjectOut(ApiModel):
    name: str
    code_sha: str
    applied_at: float
    spec: Json


class AuditOut(ApiModel):
    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: Json
    sha256: str


class TokenIn(ApiRequest):
    name: str = Field(min_length=1, max_length=100)
    role: Role


class TokenOut(ApiModel):
    name: str
    role: Role
    token: str
    """Shown once."""
