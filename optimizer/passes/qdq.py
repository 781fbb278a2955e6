"""Writing a QDQ file: an ONNX network whose tensors pass through QuantizeLinear and back.

Owns the schemes of signs and widths, and the writing.  Where the ranges come from is none of its
business: calibration finds them, and so does training with fake quantisation.

    prepared = prepare(source, scratch)
    write_qdq(prepared, target, collect(prepared, batches), Scheme.for_profile(profile))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from optimizer.passes.calibration import Range
from optimizer.passes.slim import slimmed
from optimizer.profiles import HardwareProfile

Width = Literal["s8", "u8"]

PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply by weights; the others are quantised for the sake of these."""

_LEFT_OUT: Final = frozenset({"BatchNormalization", "InstanceNormalization", "LayerNormalization"})
"""There are no int8 kernels for these; OpenVINO 2026.4 answers wrongly where they are quantised."""

_WEIGHT_LIMITS: Final = {False: 127, True: 64}


@dataclass(frozen=True)
class Scheme:
    """How numbers are represented.

    Attributes:
        activations: "u8" is asymmetric; so is "s8" unless `symmetric`.
        weights: "s8" is symmetric, "u8" asymmetric.
        reduce_range: weights of 7 bits.
        per_channel: one scale for each output channel of a weight.
        symmetric: activations without a zero point.
        bias: biases as 32-bit integers, which TensorRT does not take.
    """

    activations: Width = "u8"
    weights: Width = "s8"
    reduce_range: bool = False
    per_channel: bool = True
    symmetric: bool = False
    bias: bool = True

    @classmethod
    def for_profile(cls, profile: HardwareProfile) -> Scheme:
        """What the kernels for `profile` are written for, in full range."""
        return cls(activations="s8" if profile.is_arm else "u8")

    def reduced(self) -> Scheme:
        """With weights of 7 bits, of which no two products saturate 16 bits."""
        return replace(self, reduce_range=True)

    def unsigned(self) -> Scheme:
        """U8U8, whose kernels widen before they multiply."""
        return replace(self, activations="u8", weights="u8", reduce_range=False)

    @property
    def weight_limit(self) -> int:
        """Largest magnitude of a signed weight."""
        return _WEIGHT_LIMITS[self.reduce_range]

    def __str__(self) -> str:
        bits = " with 7-bit weights" if self.reduce_range else ""
        return f"{self.activations.upper()}{self.weights.upper()}{bits}"


def prepare(source: Path, directory: Path) -> Path:
    """`source` as quantisers want it: slim, fused, with the shapes of its tensors; in `directory`.

    Batch normalisation is folded into convolutions, and every tensor has a type.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    slim, prepared = directory / "slim.onnx", directory / "prepared.onnx"
    slim.write_bytes(slimmed(source).SerializeToString())
    # Symbolic shape inference takes long and finds what the exporter has written already.
    quant_pre_process(str(slim), str(prepared), skip_symbolic_shape=True)
    return prepared


def write_qdq(
    prepared: Path,
    target: Path,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    *,
    exclude: tuple[str, ...] = (),
    operators: tuple[str, ...] = (),
) -> None:
    """Write `prepared` with quantised weights and activations to `target`.

    Args:
        prepared: from `prepare`.
        ranges: of activations by name; an operator with one that has no range stays in fp32.
        exclude: names of nodes that stay in fp32.
        operators: types to quantise; empty takes all that the quantiser knows.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import (
        QuantType,
        load_model_with_shape_infer,
        update_opset_version,
    )
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    types = {"s8": QuantType.QInt8, "u8": QuantType.QUInt8}
    weights = types[scheme.weights]
    model = update_opset_version(load_model_with_shape_infer(prepared), weights)
    known = sorted({*QLinearOpsRegistry, *QDQRegistry} - _LEFT_OUT)
    quantizer = QDQQuantizer(
        model,
        scheme.per_channel,
        scheme.reduce_range,
        weights,
        types[scheme.activations],
        TensorsData(
            CalibrationMethod.MinMax,
            {
                name: TensorData(lowest=np.float32(each.low), highest=np.float32(each.high))
                for name, each in ranges.items()
            },
        ),
        [],
        list(exclude),
        list(operators) or known,
        {
            "ActivationSymmetric": scheme.symmetric,
            "WeightSymmetric": scheme.weights == "s8",
            "QuantizeBias": scheme.bias,
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    onnx.save(quantizer.model.model, str(target))
