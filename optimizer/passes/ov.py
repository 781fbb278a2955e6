"""Recipes for OpenVINO on CPUs: the network as `model.xml` beside `model.bin`.

Networks are read by the runtime's own ONNX frontend, not by `openvino.convert_model`.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from edge_agent.runtime.telemetry import forbid_telemetry
from optimizer.passes.context import Artifact, PassContext, RecipeConfig
from optimizer.passes.registry import recipe

if TYPE_CHECKING:
    import openvino

log = logging.getLogger("skerry.optimizer")

ENTRY: Final = "model.xml"
WEIGHTS: Final = "model.bin"


class OpenVinoInt8(RecipeConfig):
    """Config of `openvino-int8`.

    Attributes:
        rows: calibration rows at most.
        preset: "performance" quantises activations symmetrically; "mixed" asymmetrically, which
            suits activations that are not ReLU.
        fast_bias_correction: the accurate form is slower and needs more memory.
    """

    rows: Annotated[int, Field(ge=1)] = 300
    preset: Literal["performance", "mixed"] = "performance"
    fast_bias_correction: bool = True


@recipe("openvino-fp32", runtimes=("openvino",), precision="fp32", config=RecipeConfig)
def openvino_fp32(context: PassContext, config: RecipeConfig) -> Artifact:
    """The network in OpenVINO's format, weights in 32 bits."""
    forbid_telemetry()
    import openvino

    return _save(context, openvino.Core().read_model(str(context.source)), "fp32")


@recipe(
    "openvino-int8",
    runtimes=("openvino",),
    precision="int8",
    config=OpenVinoInt8,
    packages=("nncf",),
)
def openvino_int8(context: PassContext, config: OpenVinoInt8) -> Artifact:
    """Post-training quantisation by NNCF."""
    forbid_telemetry()
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    # Where int8 products are added into 16 bits, NNCF halves the range of all weights against it.
    overflow = (
        nncf.OverflowFix.DISABLE
        if context.profile.has_int8_dot_product
        else nncf.OverflowFix.ENABLE
    )
    model = openvino.Core().read_model(str(context.source))
    rows = context.calibration_batches(config.rows, 1)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        quantised = nncf.quantize(
            model,
            nncf.Dataset(list(rows)),
            preset=nncf.QuantizationPreset(config.preset),
            subset_size=len(rows),
            target_device=nncf.TargetDevice.CPU,
            fast_bias_correction=config.fast_bias_correction,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
        )
    return _save(context, quantised, "int8")


def _save(
    context: PassContext, model: openvino.Model, precision: Literal["fp32", "int8"]
) -> Artifact:
    import openvino

    # The default would store fp32 weights in 16 bits.
    openvino.save_model(model, str(context.directory / ENTRY), compress_to_fp16=False)
    return Artifact(("openvino",), ENTRY, (ENTRY, WEIGHTS), precision)
