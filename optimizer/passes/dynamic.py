"""Recipes that quantise weights beforehand and activations, if at all, as they come.

ort-int8-dynamic     scales of activations from each batch; for recurrent networks and transformers
ort-int8-weights     8-bit weights of large matrices, in blocks
ort-int4-weights     4-bit weights of large matrices, in blocks
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Annotated, Final, Literal

import onnx
from pydantic import Field

from edge_agent.wire.manifest import RuntimeName
from optimizer.errors import RecipeFailed
from optimizer.passes.census import CONVOLUTIONS, PRODUCTS, products, shares
from optimizer.passes.context import Artifact, PassContext, RecipeConfig
from optimizer.passes.ort import ENTRY
from optimizer.passes.qdq import prepare
from optimizer.passes.registry import recipe
from optimizer.passes.slim import slimmed
from optimizer.saturation import saturates

_ORT: Final[tuple[RuntimeName, ...]] = ("onnxruntime",)
_WIDENED: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino")

_DYNAMIC: Final = ("MatMul", "Gemm", "LSTM", "Attention")
"""What ONNX Runtime has kernels with dynamic scales for, convolutions aside."""


class OrtInt8Dynamic(RecipeConfig):
    """Config of `ort-int8-dynamic`.

    Attributes:
        per_channel: one scale for each output channel of a weight.
        max_convolutions: share of multiplications by convolutions above which it is refused.
        exclude: nodes to leave in fp32.
    """

    per_channel: bool = True
    max_convolutions: Annotated[float, Field(ge=0, le=1)] = 0.5
    exclude: tuple[str, ...] = ()


class OrtWeights(RecipeConfig):
    """Config of `ort-int8-weights` and `ort-int4-weights`.

    Attributes:
        block: weights that share a scale, a power of two.
        min_weights: smaller matrices stay in fp32.
        symmetric: without zero points.
        int8_arithmetic: multiply in int8 with a scale per block of activations; else in fp32.
        exclude: nodes to leave in fp32.
    """

    block: Literal[16, 32, 64, 128, 256] = 32
    min_weights: Annotated[int, Field(ge=1)] = 65_536
    symmetric: bool = True
    int8_arithmetic: bool = True
    exclude: tuple[str, ...] = ()


@recipe("ort-int8-dynamic", runtimes=_ORT, precision="int8", config=OrtInt8Dynamic)
def ort_int8_dynamic(context: PassContext, config: OrtInt8Dynamic) -> Artifact:
    """MatMul, Gemm and LSTM with 8-bit weights and scales of activations taken from each batch.

    Convolutions stay in fp32: with dynamic scales they run several times slower than that, so a
    network that mostly consists of them is refused.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="skerry-ort-") as scratch:
        prepared = prepare(context.source, Path(scratch))
        _require_suited(onnx.load(str(prepared)), config)
        quantize_dynamic(
            prepared,
            context.directory / ENTRY,
            op_types_to_quantize=list(_DYNAMIC),
            per_channel=config.per_channel,
            # these kernels take U8 activations and S8 weights, which 7 bits keep from saturating
            reduce_range=saturates(context.profile),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(config.exclude),
        )
    return Artifact(_ORT, ENTRY, (ENTRY,), "int8")


@recipe("ort-int8-weights", runtimes=_WIDENED, precision="int8", config=OrtWeights)
def ort_int8_weights(context: PassContext, config: OrtWeights) -> Artifact:
    """Large matrices with 8-bit weights in blocks."""
    _write_weights(context, config, 8)
    return Artifact(_WIDENED, ENTRY, (ENTRY,), "int8")


@recipe("ort-int4-weights", runtimes=_WIDENED, precision="int4", config=OrtWeights)
def ort_int4_weights(context: PassContext, config: OrtWeights) -> Artifact:
    """Large matrices with 4-bit weights in blocks."""
    _write_weights(context, config, 4)
    return Artifact(_WIDENED, ENTRY, (ENTRY,), "int4")


def require_large_matrices(model: onnx.ModelProto, min_weights: int) -> list[str]:
    """Names of the products by constant matrices of at least `min_weights` numbers.

    Raises:
        RecipeFailed: there is none.
    """
    found = [each for each in products(model) if each.operator in PRODUCTS]
    large = [each.name for each in found if each.weights >= min_weights]
    if not large:
        largest = max((each.weights for each in found), default=0)
        raise RecipeFailed(
            f"no matrix has {min_weights} weights or more (the largest has {largest}), and smaller "
            "ones gain nothing"
        )
    return large


def _require_suited(model: onnx.ModelProto, config: OrtInt8Dynamic) -> None:
    found = shares(model)
    convolutions = sum(found.get(operator, 0.0) for operator in CONVOLUTIONS)
    if convolutions > config.max_convolutions:
        raise RecipeFailed(
            f"{convolutions:.0%} of its multiplications are convolutions, which are slower than "
            "fp32 with dynamic scales; ort-int8 is for these"
        )
    if not any(operator in found for operator in _DYNAMIC):
        raise RecipeFailed(
            f"it multiplies by constants in {', '.join(sorted(found)) or 'no operator'} only, and "
            f"dynamic scales exist for {', '.join(_DYNAMIC)}"
        )


def _write_weights(context: PassContext, config: OrtWeights, bits: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    wrapped = ONNXModel(slimmed(context.source))
    wrapped.replace_gemm_with_matmul()
    model = wrapped.model
    for position, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
    large = set(require_large_matrices(model, config.min_weights)) - set(config.exclude)
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=config.block,
        is_symmetric=config.symmetric,
        accuracy_level=4 if config.int8_arithmetic else 1,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in large],
    )
    quantizer.process()
    made = quantizer.model.model
    (context.directory / ENTRY).write_bytes(made.SerializeToString(deterministic=True))
