"""Recipes for OpenVINO on CPUs: the network as `model.xml` beside `model.bin`.

Networks are read by the runtime's own ONNX frontend, not by `openvino.convert_model`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import onnx
from pydantic import Field

from edge_agent.runtime.telemetry import forbid_telemetry
from optimizer.errors import RecipeFailed
from optimizer.passes.context import Artifact, PassContext, Precision, RecipeConfig
from optimizer.passes.dynamic import require_large_matrices
from optimizer.passes.registry import recipe
from optimizer.passes.slim import slimmed

if TYPE_CHECKING:
    import nncf
    import openvino

log = logging.getLogger("skerry.optimizer")

ENTRY: Final = "model.xml"
WEIGHTS: Final = "model.bin"

_TRANSFORMER: Final = ("Softmax", "LayerNormalization", "SkipLayerNormalization")
"""Operators that, with products of activations, make a transformer."""


class OpenVinoInt8(RecipeConfig):
    """Config of `openvino-int8`.

    Attributes:
        rows: calibration rows at most.
        preset: "performance" quantises activations symmetrically; "mixed" asymmetrically, which
            suits activations that are not ReLU.
        fast_bias_correction: the accurate form is slower and needs more memory.
        transformer: leave what hurts transformers in fp32; `None` decides by the operators.
        smooth: strength, 0 to 1, by which outliers of a transformer's activations are moved into
            weights; `None` leaves them where they are, which is better unless there are many.
    """

    rows: Annotated[int, Field(ge=1)] = 300
    preset: Literal["performance", "mixed"] = "performance"
    fast_bias_correction: bool = True
    transformer: bool | None = None
    smooth: Annotated[float, Field(ge=0, le=1)] | None = None


class OpenVinoInt8Mixed(OpenVinoInt8):
    """Config of `openvino-int8-mixed`: that of `openvino-int8` with the other preset."""

    preset: Literal["performance", "mixed"] = "mixed"


class OpenVinoWeights(RecipeConfig):
    """Config of `openvino-int8-weights` and `openvino-int4-weights`.

    Attributes:
        block: 4-bit weights that share a scale.
        min_weights: a network without a matrix of so many numbers is refused.
    """

    block: Literal[32, 64, 128] = 32
    min_weights: Annotated[int, Field(ge=1)] = 65_536


@recipe("openvino-fp32", runtimes=("openvino",), precision="fp32", config=RecipeConfig)
def openvino_fp32(context: PassContext, config: RecipeConfig) -> Artifact:
    """The network in OpenVINO's format, weights in 32 bits."""
    return save(context, read(context), "fp32")


@recipe(
    "openvino-int8",
    runtimes=("openvino",),
    precision="int8",
    config=OpenVinoInt8,
    packages=("nncf",),
)
def openvino_int8(context: PassContext, config: OpenVinoInt8) -> Artifact:
    """Post-training quantisation by NNCF."""
    rows = context.calibration_batches(config.rows, 1)
    model = read(context)
    import nncf

    nncf.set_log_level(logging.ERROR)
    # Where int8 products are added into 16 bits, NNCF halves the range of all weights against it.
    overflow = (
        nncf.OverflowFix.DISABLE
        if context.profile.has_int8_dot_product
        else nncf.OverflowFix.ENABLE
    )
    transformer = config.transformer
    if transformer is None:
        transformer = _is_transformer(context.source)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        quantised = nncf.quantize(
            model,
            nncf.Dataset(rows),
            preset=nncf.QuantizationPreset(config.preset),
            subset_size=len(rows),
            target_device=nncf.TargetDevice.CPU,
            fast_bias_correction=config.fast_bias_correction,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=overflow, smooth_quant_alphas=_smoothing(config.smooth)
            ),
        )
    return save(context, quantised, "int8")


recipe(
    "openvino-int8-mixed",
    runtimes=("openvino",),
    precision="int8",
    config=OpenVinoInt8Mixed,
    packages=("nncf",),
)(openvino_int8)


@recipe(
    "openvino-int8-weights",
    runtimes=("openvino",),
    precision="int8",
    config=OpenVinoWeights,
    packages=("nncf",),
)
def openvino_int8_weights(context: PassContext, config: OpenVinoWeights) -> Artifact:
    """8-bit weights; what is multiplied with them stays in floating point."""
    return _with_small_weights(context, config, "int8")


@recipe(
    "openvino-int4-weights",
    runtimes=("openvino",),
    precision="int4",
    config=OpenVinoWeights,
    packages=("nncf",),
)
def openvino_int4_weights(context: PassContext, config: OpenVinoWeights) -> Artifact:
    """4-bit weights in blocks; layers that NNCF finds too sensitive have 8 bits."""
    return _with_small_weights(context, config, "int4")


def read(context: PassContext) -> openvino.Model:
    """The slim network as OpenVINO has it.

    Raises:
        RecipeFailed: OpenVINO lacks an operator, or cannot read the network.
    """
    forbid_telemetry()
    import openvino

    try:
        with tempfile.TemporaryDirectory(prefix="skerry-ov-") as scratch:
            path = Path(scratch) / "slim.onnx"
            path.write_bytes(slimmed(context.source).SerializeToString())
            return openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise RecipeFailed(f"OpenVINO cannot read the network: {_cause(error)}") from error


def save(
    context: PassContext, model: openvino.Model, precision: Precision, *, compress: bool = False
) -> Artifact:
    """Write `model` to the recipe's directory.

    Args:
        compress: store fp32 weights in 16 bits.
    """
    import openvino

    openvino.save_model(model, str(context.directory / ENTRY), compress_to_fp16=compress)
    return Artifact(("openvino",), ENTRY, (ENTRY, WEIGHTS), precision)


def _with_small_weights(
    context: PassContext, config: OpenVinoWeights, precision: Literal["int8", "int4"]
) -> Artifact:
    require_large_matrices(slimmed(context.source), config.min_weights)
    model = read(context)
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        if precision == "int8":
            small = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            small = nncf.compress_weights(
                model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=config.block
            )
    return save(context, small, precision)


def _smoothing(strength: float | None) -> nncf.AdvancedSmoothQuantParameters:
    import nncf

    none = -1  # NNCF's word for it
    return nncf.AdvancedSmoothQuantParameters(matmul=none if strength is None else strength)


def _is_transformer(source: Path) -> bool:
    model = onnx.load(str(source), load_external_data=False)
    constants = {item.name for item in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    attends = any(not set(node.input) & constants for node in products)
    return attends and any(node.op_type in _TRANSFORMER for node in model.graph.node)


def _cause(error: BaseException) -> str:
    """OpenVINO's messages begin with source locations; what is missing stands in a later line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "no translator" in line.lower() or "support" in line]
    return (telling or lines or [type(error).__name__])[-1][:300]
