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


class Desired(WireModel):
    """The desired twin, retained on `desired`."""

    version: int = Field(ge=0)
    models: dict[Slug, DesiredModel] = Field(default_factory=dict)


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


class MetricsReport(WireModel):
    """Serving figures of one model version over one window on one device."""

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


class EnrolRequest(WireModel):
    claim_id: Slug
    secret: str
    csr_pem: str = Field(max_length=8192)
    inventory: Inventory
    name: Slug | None = None
    """Wished device id; refused when it is taken."""


class EnrolReply(WireModel):
    device_id: Slug
    certificate_pem: str
    ca_pem: str
    broker_host: str
    broker_port: int


ModelState.model_rebuild()
DeviceState.model_rebuild()
