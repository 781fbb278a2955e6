"""The manifest of a bundle: everything a device needs to serve one model version.

A bundle is an uncompressed tar of `manifest.json` and the files it lists.  The bundle's digest is
what the signed metadata names, so every field here is covered by the signatures.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from edge_agent.wire.base import WireModel
from edge_agent.wire.ids import Digest, Slug

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 256 * 1024

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES", "BF16",
]  # fmt: skip
"""Tensor element types, as the Open Inference Protocol v2 names them."""

RuntimeName = Literal["onnxruntime", "openvino", "tensorrt"]

StepKind = Literal["checker", "processor", "model", "service"]

RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)
]
"""A plain file name inside a bundle: no directories, no leading dot."""


class TensorSpec(WireModel):
    """One tensor of an interface.  `shape` includes the batch axis first; -1 is any length."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class StepSpec(WireModel):
    """One step of a pipeline: the name it was registered under, and its keyword arguments."""

    name: str
    config: dict[str, JsonValue] = Field(default_factory=dict)


class ModelSpec(WireModel):
    """The network itself, and how the runtime is to run it.

    Attributes:
        file: entry file in the bundle (`model.onnx`, or `model.xml` beside `model.bin`).
        threads: intra-op threads; 0 leaves it to the runtime.
        instances: batches that may run at the same time; they share the weights.
        precision: precision that was measured, e.g. "fp32", "int8"; informative.
    """

    runtime: RuntimeName
    file: RelativePath
    threads: int = Field(default=1, ge=0, le=256)
    instances: int = Field(default=1, ge=1, le=64)
    precision: str = "fp32"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class CostModel(WireModel):
    """Service time of a batch of n items: `per_item_us`·n + `fixed_us`, as measured."""

    per_item_us: float = Field(ge=0)
    fixed_us: float = Field(ge=0)
    max_batch: int = Field(default=1, ge=1, le=4096)


class ImageSpec(WireModel):
    """How an image that an application posts becomes a tensor: decoded, nothing else.

    Resizing and scaling are steps of the pipeline, so that training and evaluation share them.

    Attributes:
        input: the pipeline's input that the image fills, UINT8 or FP32 with values 0…255, shaped
            [n, height, width] in mode "L" and [n, height, width, 3] in mode "RGB".
        max_pixels: larger images are refused before they are decoded.
    """

    input: str
    mode: Literal["L", "RGB"] = "RGB"
    max_pixels: int = Field(default=16_777_216, ge=1, le=100_000_000)


class Limits(WireModel):
    """What probation holds the version to.  `None` is not checked."""

    latency_p99_ms: float | None = None
    error_rate: float = 0.01
    memory_mib: float | None = None


class SamplingSpec(WireModel):
    """Which inputs a device uploads.

    Attributes:
        uniform_rate: probability with which any request is kept, whatever its answer.
        uncertain_rate: expected share of requests kept in proportion to their entropy.
        max_bytes_per_minute: budget of all strata together.
        max_spool_bytes: high-water mark on disk; sampling stops above it.
    """

    uniform_rate: float = Field(default=0.05, ge=0, le=1)
    uncertain_rate: float = Field(default=0.05, ge=0, le=1)
    max_bytes_per_minute: int = Field(default=1_000_000, ge=0)
    max_spool_bytes: int = Field(default=64_000_000, ge=0)


class BundleFile(WireModel):
    name: RelativePath
    sha256: Digest
    length: int = Field(ge=0)


class Manifest(WireModel):
    """See the module.

    Attributes:
        version: the model's version, counted by the registry from 1.
        variant: which candidate this is, e.g. "small/ort-int8".
        inputs: what a client sends; shapes and names of the *pipeline*, not of the network.
        outputs: what a client receives.
        labels: class names in the order of the network's outputs; empty where it has no classes.
        code: Python files of the bundle that register the steps a project defines itself.
        golden: `.npz` with arrays `input:NAME` and `output:NAME`: known answers of this variant.
        reference: `.npz` summary of the drift signals on the data that the version was judged by.
        privacy: hooks applied to a sample, in this order, before it touches the disk.
        image: how the task route takes images; None where the model takes none.
    """

    schema_version: Literal[1] = 1
    model: Slug
    version: int = Field(ge=1)
    profile: Slug
    variant: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    pipeline: tuple[StepSpec, ...]
    code: tuple[RelativePath, ...] = ()
    network: ModelSpec
    golden: RelativePath | None = None
    golden_atol: float = Field(default=1e-4, ge=0)
    reference: RelativePath | None = None
    cost: CostModel | None = None
    limits: Limits = Limits()
    sampling: SamplingSpec = SamplingSpec()
    privacy: tuple[StepSpec, ...] = ()
    image: ImageSpec | None = None
    files: tuple[BundleFile, ...]


class Encoding(WireModel):
    """One form in which a bundle's bytes can be fetched.

    Attributes:
        algo: "raw", "zstd", or "delta" against a bundle that the device may still have.
        base_sha256: digest of the raw bundle that a delta applies to; None for the other two.
        sha256: digest of the encoded bytes; names the blob in chunk requests.
        length: length of the encoded bytes.
        chunks_sha256: digest of the concatenated 32-byte chunk digests (the chunk list).
        ram_needed: bytes a device needs beside its baseline to decode.
    """

    algo: Literal["raw", "zstd", "delta"]
    base_sha256: Digest | None = None
    sha256: Digest
    length: int = Field(ge=0)
    chunks_sha256: Digest
    ram_needed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_its_base(self) -> Self:
        if (self.algo == "delta") != (self.base_sha256 is not None):
            raise ValueError("base_sha256 is given for a delta, and for nothing else")
        return self


class ReleaseInfo(WireModel):
    """The signed `custom` field of a target: what the device checks before it fetches a byte.

    Attributes:
        counter: grows with every release of this model and profile; a device never goes back.
        chunk_bytes: length of every chunk but the last.
    """

    model: Slug
    version: int = Field(ge=1)
    profile: Slug
    counter: int = Field(ge=1)
    chunk_bytes: int = Field(default=65536, ge=1024, le=131072)
    encodings: tuple[Encoding, ...]


def target_path(model: str, profile: str, counter: int) -> str:
    """Name of a release's target in both repositories."""
    return f"models/{model}/{profile}/{counter}.bundle"


def trial_path(target: str) -> str:
    """Name under which the director lets a device try a release beside the one that serves.

    No release has it: an agent that knows no trials passes over it.
    """
    return f"trials/{target}"
