"""Measuring candidates on lab devices: the order, what the device says meanwhile, and its result.

An order travels as exact bytes on the device's `lab` topic, retained until it has ended.  The
director signs its digest into the device's own targets, beside the candidate and the samples; the
image repository names both under `lab/`.  A message here therefore decides nothing: see
docs/adr/0010.

A device answers on `up/measure` with frames: a `MeasureHeader`, and as the payload of the final one
a `MeasureResult` whose very bytes the device's key signed.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, StringConstraints

from edge_agent.wire.base import WireModel
from edge_agent.wire.ids import Digest, Slug
from edge_agent.wire.manifest import Encoding
from edge_agent.wire.messages import Inventory

LAB_TARGET_PATTERN: Final = r"^lab/[0-9a-f]{64}\.(bundle|samples)$"
LabTargetName = Annotated[str, StringConstraints(pattern=LAB_TARGET_PATTERN)]

MAX_ORDER_BYTES: Final = 16 * 1024
MAX_MEASURE_BYTES: Final = 64 * 1024
"""Bound of one answer, result included."""
MAX_ORDER_S: Final = 6 * 3600.0
"""Longest life of an order; an older one is refused whatever it says of its end."""

SIGNED_PREFIX: Final = b"skerry measure result v1\0"
"""Precedes the result's bytes in what a device signs (ECDSA P-256 over SHA-256): its key signs
TLS handshakes too, and one must never be taken for the other."""

LabKind = Literal["bundle", "samples"]
MeasureState = Literal[
    "accepted", "downloading", "measuring", "done", "failed", "refused", "aborted"
]
"""How far an order is.  The last four end it."""
FINAL_STATES: Final[frozenset[MeasureState]] = frozenset({"done", "failed", "refused", "aborted"})


def lab_target(kind: LabKind, sha256: str) -> str:
    """Name of a blob of the lab in both repositories: what it is, not whose."""
    return f"lab/{sha256}.{kind}"


class LabTarget(WireModel):
    """A blob that an order names; `length` in bytes and `sha256` are of the raw blob."""

    target: LabTargetName
    sha256: Digest
    length: int = Field(ge=0)


class LabInfo(WireModel):
    """The signed `custom` field of a lab target: what a device checks before it fetches a byte.

    Attributes:
        chunk_bytes: length of every chunk but the last.
    """

    kind: LabKind
    chunk_bytes: int = Field(default=65536, ge=1024, le=131072)
    encodings: tuple[Encoding, ...]


class MeasureOrder(WireModel):
    """What to measure, on one device, until when.

    Attributes:
        id: drawn for this order; never used again.
        candidate: an unpacked bundle of the device's own profile.
        samples: `.npz` with arrays `INDEX:NAME`, one item each, that queries are made of.
        compare_with: time the candidate in turns with this bundle, and nothing else.
        issued_at, expires_at: seconds since the epoch.
        latency_ms: the limit of `percentile`; None states the percentile only.
        qps: mean rate of Poisson arrivals to try as well; None leaves the server scenario out.
        cost: fit the time of a batch, and find the largest one worth making.
        memory: weigh the bundle in a process of its own.
        settings: of `edge_agent.measure.MeasureSettings`.
        server_settings: the same for the server scenario, which takes as long as its queries take
            to arrive; empty is `settings`.
    """

    id: Slug
    device: Slug
    profile: Slug
    issued_at: float
    expires_at: float
    candidate: LabTarget
    samples: LabTarget
    compare_with: LabTarget | None = None
    latency_ms: float | None = Field(default=None, gt=0)
    percentile: float = Field(default=0.99, gt=0, lt=1)
    qps: float | None = Field(default=None, gt=0)
    cost: bool = True
    memory: bool = True
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    server_settings: dict[str, JsonValue] = Field(default_factory=dict)


class MeasureHeader(WireModel):
    """Head of every answer to an order.

    Attributes:
        detail: one line for a person.
        signature: hexadecimal DER of the ECDSA signature over `SIGNED_PREFIX` and the payload; in
            final answers only.
    """

    order: Slug
    state: MeasureState
    detail: str = Field(default="", max_length=500)
    signature: str = Field(default="", max_length=200, pattern=r"^[0-9a-f]*$")


class MeasureResult(WireModel):
    """How an order ended.

    Attributes:
        order_sha256: digest of the order's bytes, which binds the result to this very order.
        reason: machine-readable cause of everything but "done", e.g. "order_expired".
        latency, server: dumps of `edge_agent.measure.Measurement`.
        cost: dump of `edge_agent.measure.CostFit`: `cost`, `batch_us`, `reason`, `note`.
        comparison: dump of `edge_agent.measure.Comparison`; speed-up of the candidate.
        served_requests: predictions that the device answered while it measured.
        provenance: versions, and the precision that the runtime really runs.
        started_at, ended_at: seconds since the epoch by the device's clock.
    """

    order: Slug
    order_sha256: Digest
    device: Slug
    state: MeasureState
    reason: str = Field(default="", max_length=64)
    detail: str = Field(default="", max_length=500)
    latency: dict[str, JsonValue] | None = None
    server: dict[str, JsonValue] | None = None
    cost: dict[str, JsonValue] | None = None
    comparison: dict[str, JsonValue] | None = None
    memory_mib: float | None = None
    served_requests: int = 0
    inventory: Inventory | None = None
    provenance: dict[str, str] = Field(default_factory=dict)
    started_at: float = 0.0
    ended_at: float = 0.0
