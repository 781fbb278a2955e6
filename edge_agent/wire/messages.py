"""Messages between device and control plane, other than samples."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, JsonValue

from edge_agent.wire.base import WireModel
from edge_agent.wire.ids import Digest, Slug

# ── uplink ───────────────────────────────────────────────────────────────────────────────────────


class UplinkHeader(WireModel):
    """Head of every frame on `up/KIND`.

    (`device`, `stream`, `seq`) is unique for ever: `stream` is drawn each time the journal is
    opened, `seq` counts its rows from 1.  The control plane applies each once and acknowledges
    after its commit.
    """

    stream: Digest | str = Field(max_length=64)
    seq: int = Field(ge=1)
    created_at: float
    """Seconds since the epoch by the device's clock."""


class Ack(WireModel):
    """These rows of the journal are committed; the device may drop them."""

    stream: str
    seqs: tuple[int, ...]


# ── twin ─────────────────────────────────────────────────────────────────────────────────────────


class ModelState(WireModel):
    """What a device serves for one model.  `sha256` is the bundle's digest."""

    version: int
    counter: int
    sha256: Digest
    variant: str
    phase: Phase
    detail: str = ""
    challenger: ChallengerState | None = None
    """The version that is tried beside it."""


class DeviceState(WireModel):
    """Birth (online) and will (offline).  A will is matched to its birth by `boot`."""

    boot: str
    """Drawn at each start of the agent."""
    online: bool
    agent_version: str = ""
    profile: str = ""
    inventory: Inventory | None = None
    models: dict[str, ModelState] = Field(default_factory=dict)
    desired_version: int = 0
    """Last desired twin that the device has seen."""
    at: float = 0.0
    lab: bool = False
    """Whether the device's operator lets it measure candidates (`edge_agent.wire.lab`)."""


class Inventory(WireModel):
    """What a device is made of; found by itself, never configured."""

    machine: str
    system: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_mib: int
    disk_free_mib: int
    python: str
    runtimes: dict[str, str]
    """Inference runtimes and their versions."""
    board: str = ""
    """Model and compatible names of the device tree, or DMI's names; empty where there are none."""
    accelerators: tuple[str, ...] = ()
    """Names that the drivers give: `NVIDIA L4`, `Intel NPU`."""


MAX_NUMBER: Final = 2**53 - 1
"""Largest version, counter or generation: exact in JSON everywhere, and fits SQLite's integers."""


class DesiredModel(WireModel):
    """A hint which release to look for.  The signed metadata decides, not this message.

    `generation` grows with each assignment of this model to this device; a newer one supersedes.
    Models of the same `group` are installed all or none.
    """

    target: str
    version: int = Field(ge=0, le=MAX_NUMBER)
    counter: int = Field(ge=0, le=MAX_NUMBER)
    generation: int = Field(ge=0, le=MAX_NUMBER)
    rollout: str | None = None
    probation_s: float = 10.0
    group: Slug | None = None


TrialMode = Literal["ab", "shadow"]
"""How a version is tried beside the one that serves: it answers a share of the requests, or it
computes a share of them silently."""

SHARE_PPM: Final = 1_000_000
"""A share of all requests, in the parts per million that signed metadata counts in."""


class DesiredTrial(DesiredModel):
    """A hint which release to try beside the one that serves.  `mode` and `share` are hints, too:
    what the director signed holds.

    Another share, or another mode, under the same generation is the same assignment.
    """

    mode: TrialMode
    share: float = Field(ge=0, le=1, allow_inf_nan=False)


class ChallengerState(WireModel):
    """A version that is tried beside the one that serves, and how."""

    version: int
    counter: int
    sha256: Digest
    variant: str
    phase: Phase
    mode: TrialMode
    share: float


class Desired(WireModel):
    """The desired twin, retained on `desired`.

    Attributes:
        trials: what is to be tried beside `models`; a device that knows no trials leaves them out.
    """

    version: int = Field(ge=0)
    models: dict[Slug, DesiredModel] = Field(default_factory=dict)
    trials: dict[Slug, DesiredTrial] = Field(default_factory=dict)


# ── reports ──────────────────────────────────────────────────────────────────────────────────────

Phase = Literal[
    "queued", "offered", "downloading", "verified", "staged", "activating", "probation",
    "healthy", "rejected", "failed", "rolled_back", "superseded", "cancelled",
]  # fmt: skip
"""Progress of one assignment on one device."""

FINAL_PHASES: frozenset[Phase] = frozenset(
    {"healthy", "rejected", "failed", "rolled_back", "superseded", "cancelled"}
)


class UpdateReport(WireModel):
    """One step of one assignment.

    Attributes:
        reason: machine-readable cause of `rejected`, `failed` or `rolled_back`, e.g.
            "chunk_corrupt", "untrusted_metadata", "selftest_failed"; empty on progress.
        detail: one line for a person.
    """

    model: Slug
    target: str
    version: int
    counter: int
    generation: int
    rollout: str | None = None
    phase: Phase
    reason: str = ""
    detail: str = Field(default="", max_length=500)
    elapsed_s: float = 0.0


class ComparisonReport(WireModel):
    """Answers of two versions to the same inputs, over one window.

    Attributes:
        compared: items that both answered.
        disagreed: of these, items that were given another class, or where there are no classes
            outputs of another shape.
        errors: requests that the version failed or refused although the live one answered.
        shed: requests that were to be compared, but were left out under load.
        scored: items whose numbers were compared.
        abs_max: largest difference of two numbers, 0 without any.
        abs_mean: mean of the differences, over all numbers of the items in `scored`.
    """

    compared: int = Field(default=0, ge=0)
    disagreed: int = Field(default=0, ge=0)
    errors: int = Field(default=0, ge=0)
    shed: int = Field(default=0, ge=0)
    scored: int = Field(default=0, ge=0)
    abs_max: float = Field(default=0.0, ge=0)
    abs_mean: float = Field(default=0.0, ge=0)


class MetricsReport(WireModel):
    """Serving figures of one model version over one window on one device.

    Attributes:
        trial: the version is tried beside another in this way, `share` of the requests.  Those of
            "shadow" were answered by the other version as well, and their latency is of the
            computation alone, at low priority.
        comparison: of a shadow with the version that answered.
    """

    model: Slug
    version: int
    window_s: float
    requests: int
    errors: int
    rejects: int
    corrections: int
    latency_p50_us: float
    latency_p99_us: float
    rss_mib: float
    trial: TrialMode | None = None
    share: float | None = None
    comparison: ComparisonReport | None = None


class Correction(WireModel):
    """A person told the device what the right answer was."""

    model: Slug
    version: int
    prediction_id: str
    predicted: str
    label: str
    at: float


class DeviceEvent(WireModel):
    """Anything else worth a line in the audit: a refused message, a full disk."""

    name: str
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    at: float


# ── metadata and chunks ──────────────────────────────────────────────────────────────────────────


class FetchRequest(WireModel):
    """Ask for a metadata file.  `path` starts with `image/`, `director/` or `chunks/`."""

    id: str = Field(max_length=64)
    path: str = Field(max_length=200)


class FetchReply(WireModel):
    """Header of a frame with part `part` of `parts`.  "not_found" is explicit, never a time-out."""

    id: str
    status: Literal["ok", "not_found", "denied", "unavailable"]
    part: int = 0
    parts: int = 1
    length: int = 0


class ChunkRequest(WireModel):
    """Ask for chunks `first` + i of blob `sha256`, for each bit i set in `bitmap`.

    `bitmap` is a hexadecimal integer; bit 0 is the lowest.  At most 64 bits.
    """

    sha256: Digest
    first: int = Field(ge=0)
    bitmap: str = Field(max_length=16, pattern=r"^[0-9a-f]+$")
    chunk_bytes: int = Field(ge=1024, le=131072)


class ChunkReply(WireModel):
    """Header of a frame with one chunk."""

    sha256: Digest
    index: int
    status: Literal["ok", "not_found", "denied"] = "ok"


# ── renewal ──────────────────────────────────────────────────────────────────────────────────────


class RenewRequest(WireModel):
    """Ask for another certificate, or tell which one is in use.

    Attributes:
        csr_pem: PKCS #10 request; empty when the device only tells.
        serial: of the certificate with which this very connection was made, hexadecimal; the
            control plane revokes those before it.
    """

    id: str = Field(max_length=64)
    csr_pem: str = Field(default="", max_length=8192)
    serial: str = Field(default="", max_length=64, pattern=r"^[0-9a-f]*$")


class RenewReply(WireModel):
    """The answer; `certificate_pem` where one was asked for.

    "denied": the device is unknown or revoked.  "refused": the request will never be right.
    "unavailable": later.
    """

    id: str
    status: Literal["ok", "denied", "refused", "unavailable"]
    certificate_pem: str = Field(default="", max_length=16384)
    detail: str = Field(default="", max_length=300)


# ── enrolment (HTTP) ─────────────────────────────────────────────────────────────────────────────


class ClaimFile(WireModel):
    """What a new device is given: where to enrol, the right to do it once, and whom to trust.

    Attributes:
        url: base address of the control plane's API.
        secret: one-time secret; never logged.
        profile: hardware profile that the claim is bound to.
        ca_pem: certificate authority of the control plane.
        image_root, director_root: first TUF root metadata of both repositories, as JSON text.
    """

    url: str
    claim_id: Slug
    secret: str
    profile: Slug
    ca_pem: str
    image_root: str
    director_root: str
    device: Slug | None = None
    """The only name that the claim enrols; None leaves the name to the device."""


class EnrolRequest(WireModel):
    claim_id: Slug
    secret: str = Field(max_length=200)
    csr_pem: str = Field(max_length=8192)
    inventory: Inventory
    name: Slug | None = None
    """Wished device id; refused when it is taken."""
    profile: Slug | None = None
    """What the device takes itself for; refused unless it is the claim's."""


class EnrolReply(WireModel):
    device_id: Slug
    certificate_pem: str
    ca_pem: str
    broker_host: str
    broker_port: int


ModelState.model_rebuild()
DeviceState.model_rebuild()
