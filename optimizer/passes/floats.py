"""Recipes with 16-bit floating-point numbers.

ort-fp16        ONNX with fp16 weights and fp32 at its ports
tensorrt-fp16   the same file, for TensorRT
openvino-fp16   OpenVINO in fp16, where the CPU has it
openvino-bf16   OpenVINO in bf16, where the CPU has it

What really runs is what the runtime reports: ONNX Runtime on x86 widens fp16 weights when it opens
the file, which then is only smaller.
"""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from optimizer.errors import RecipeFailed
from optimizer.passes import ov
from optimizer.passes.context import Artifact, PassContext, RecipeConfig
from optimizer.passes.ort import ENTRY
from optimizer.passes.registry import recipe
from optimizer.passes.slim import slimmed
from optimizer.profiles import HardwareProfile

_ARM_FP16: Final = frozenset({"asimdhp"})
_FP16: Final = _ARM_FP16 | {"avx512_fp16", "amx_fp16"}
_BF16: Final = frozenset({"avx512_bf16", "amx_bf16"})

_LARGEST: Final = float(np.finfo(np.float16).max)


@recipe("ort-fp16", runtimes=("onnxruntime", "openvino"), precision="fp16", config=RecipeConfig)
def ort_fp16(context: PassContext, config: RecipeConfig) -> Artifact:
    """Weights and arithmetic in fp16, where ONNX Runtime has it: on ARM with fp16 instructions."""
    _write_fp16(context)
    notes: tuple[str, ...] = ()
    if not context.profile.flags & _ARM_FP16:
        notes = ("ONNX Runtime computes in fp32 here; only the file is in fp16",)
    return Artifact(("onnxruntime", "openvino"), ENTRY, (ENTRY,), "fp16", notes)


@recipe("tensorrt-fp16", runtimes=("tensorrt",), precision="fp16", config=RecipeConfig)
def tensorrt_fp16(context: PassContext, config: RecipeConfig) -> Artifact:
    """An ONNX file in fp16; TensorRT builds its engine on the device.

    The types stand in the file: from version 11 on, TensorRT computes in no others.
    """
    _write_fp16(context)
    return Artifact(("tensorrt",), ENTRY, (ENTRY,), "fp16")


@recipe("openvino-fp16", runtimes=("openvino",), precision="fp16", config=RecipeConfig)
def openvino_fp16(context: PassContext, config: RecipeConfig) -> Artifact:
    """Weights and arithmetic in fp16."""
    _require(context.profile, _FP16, "fp16")
    return ov.save(context, ov.read(context), "fp16", compress=True)


@recipe("openvino-bf16", runtimes=("openvino",), precision="bf16", config=RecipeConfig)
def openvino_bf16(context: PassContext, config: RecipeConfig) -> Artifact:
    """Arithmetic in bf16; weights are stored in fp16, which holds three bits more."""
    _require(context.profile, _BF16, "bf16")
    return ov.save(context, ov.read(context), "bf16", compress=True)


def _require(profile: HardwareProfile, flags: frozenset[str], precision: str) -> None:
    if not profile.flags & flags:
        raise RecipeFailed(
            f"CPUs of profile '{profile.name}' have no {precision} arithmetic "
            f"(none of {', '.join(sorted(flags))})"
        )


def _write_fp16(context: PassContext) -> None:
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = slimmed(context.source)
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            _require_range(item)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers that become zero or the smallest of fp16
        half = convert_float_to_float16(model, keep_io_types=True)
    wrapped = ONNXModel(half)
    wrapped.topological_sort()  # it puts its casts at the end
    (context.directory / ENTRY).write_bytes(wrapped.model.SerializeToString(deterministic=True))


def _require_range(item: onnx.TensorProto) -> None:
    values = numpy_helper.to_array(item)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST:
        raise RecipeFailed(
            f"weight '{item.name}' reaches {largest:.3g}, and fp16 ends at {_LARGEST:.0f}"
        )
