"""Recipes for ONNX Runtime on CPUs.

int8 is always QDQ and static: QOperator and dynamic quantisation of a CNN run several times slower
than fp32.  Weights are S8 per channel.  Activations are U8 on x86 and S8 on ARM, which is what the
kernels of each are written for.

Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import onnx
from onnx import numpy_helper
from pydantic import Field

from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import RuntimeName
from optimizer.passes.frozen import freeze
from optimizer.passes.registry import Artifact, PassContext, RecipeConfig, recipe

log = logging.getLogger("skerry.optimizer")

ENTRY: Final = "model.onnx"
RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino", "tensorrt")
"""What opens ONNX files in fp32 and QDQ alike."""

_FULL: Final = 127
_REDUCED: Final = 64
"""Largest magnitudes that `onnxruntime.quantization` gives a symmetric weight."""


class OrtInt8(RecipeConfig):
    """Config of `ort-int8`.

    Attributes:
        rows: calibration rows at most.
        batch: rows held in memory at a time.
        per_channel: one scale for each output channel of a weight.
        reduce_range: 7-bit weights; `None` decides by the profile's instruction set.
        exclude: nodes to leave in fp32.
    """

    rows: Annotated[int, Field(ge=1)] = 512
    batch: Annotated[int, Field(ge=1)] = 32
    per_channel: bool = True
    reduce_range: bool | None = None
    exclude: tuple[str, ...] = ()


@recipe("fp32", runtimes=RUNTIMES, precision="fp32", config=RecipeConfig)
def fp32(context: PassContext, config: RecipeConfig) -> Artifact:
    """The exported file as it is: ONNX Runtime fuses it when it opens it."""
    shutil.copyfile(context.source, context.directory / ENTRY)
    return Artifact(RUNTIMES, ENTRY, (ENTRY,), "fp32")


@recipe("ort-int8", runtimes=RUNTIMES, precision="int8", config=OrtInt8)
def ort_int8(context: PassContext, config: OrtInt8) -> Artifact:
    """Static QDQ quantisation with calibration that streams.

    Without VNNI, x86 adds pairs of U8·S8 products into 16 bits, which saturate; weights of 7 bits
    cannot.  So the range is reduced by the instruction set of the profile, not of this machine.

    A retrained network keeps the scales of its parent where they fit: see `frozen`.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    profile = context.profile
    reduce_range = config.reduce_range
    if reduce_range is None:
        reduce_range = not profile.has_int8_dot_product
    reader = _StreamingReader(context.calibration_batches(config.rows, config.batch))
    with tempfile.TemporaryDirectory(prefix="skerry-ort-") as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        # Symbolic shape inference needs sympy and is of use for transformers only.
        quant_pre_process(str(context.source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(context.directory / ENTRY),
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=config.per_channel,
            reduce_range=reduce_range,
            activation_type=QuantType.QInt8 if profile.is_arm else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(config.exclude),
            # One batch at a time.  Not CalibMaxIntermediateOutputs: up to onnxruntime 1.31 it drops
            # what it has collected without taking its range.
            extra_options={"CalibStridedMinMax": 1},
        )
        notes = _keep_scales(context, prepared, _REDUCED if reduce_range else _FULL)
    log.info(
        "pass.ort_int8 profile=%s activations=%s reduce_range=%s",
        profile.name, "s8" if profile.is_arm else "u8", reduce_range,
    )  # fmt: skip
    return Artifact(RUNTIMES, ENTRY, (ENTRY,), "int8", notes)


def _keep_scales(context: PassContext, prepared: Path, weight_limit: int) -> tuple[str, ...]:
    """Put the parent's scales into the file; what the report is to say of it."""
    if context.parent is None or not (context.parent / ENTRY).is_file():
        return ()
    try:
        parent = onnx.load(str(context.parent / ENTRY))
    except Exception as error:  # protobuf's DecodeError is not part of its public names
        log.warning("pass.parent_unreadable file=%s cause=%s", context.parent / ENTRY, error)
        return ("the parent version's file cannot be read: new scales",)
    model = onnx.load(str(context.directory / ENTRY))
    plain = {
        item.name: numpy_helper.to_array(item)
        for item in onnx.load(str(prepared)).graph.initializer
    }
    frozen = freeze(model, plain, parent, weight_limit)
    if frozen is None:
        return ("the parent version is another network: new scales",)
    (context.directory / ENTRY).write_bytes(model.SerializeToString(deterministic=True))
    return (frozen.note(),)


class _StreamingReader:
    """Calibration batches in the form that ONNX Runtime's strided calibration asks for."""

    def __init__(self, batches: list[Tensors]) -> None:
        self._batches = batches
        self._next: Iterator[Tensors] = iter(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next = iter(self._batches[start_index:end_index])

    def get_next(self) -> Tensors | None:
        return next(self._next, None)
