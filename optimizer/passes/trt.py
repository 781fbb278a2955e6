"""The recipe for TensorRT in int8: a QDQ file in the form that its parser takes.

Scales have no zero points, weights and activations are S8, and biases stay in fp32.  The engine is
built on the device, by the runtime; here nothing needs a GPU.

Source: docs.nvidia.com/deeplearning/tensorrt, "Working with Quantized Types".
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from optimizer.passes.calibration import Method, collect
from optimizer.passes.context import Artifact, PassContext, RecipeConfig
from optimizer.passes.ort import ENTRY
from optimizer.passes.qdq import PRODUCTS, Scheme, prepare, write_qdq
from optimizer.passes.registry import recipe


class TensorRtInt8(RecipeConfig):
    """Config of `tensorrt-int8`.

    Attributes:
        rows: calibration rows at most.
        batch: rows held in memory at a time.
        calibration: "minmax" takes the extremes; "entropy" and "percentile" clip them.
        percentile: share of the values that stays, in percent.
        exclude: nodes to leave in floating point.
    """

    rows: Annotated[int, Field(ge=1)] = 512
    batch: Annotated[int, Field(ge=1)] = 32
    calibration: Method = "entropy"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    exclude: tuple[str, ...] = ()


@recipe("tensorrt-int8", runtimes=("tensorrt",), precision="int8", config=TensorRtInt8)
def tensorrt_int8(context: PassContext, config: TensorRtInt8) -> Artifact:
    """Static int8 for TensorRT."""
    batches = context.calibration_batches(config.rows, config.batch)
    scheme = Scheme(activations="s8", symmetric=True, bias=False)
    with tempfile.TemporaryDirectory(prefix="skerry-trt-") as scratch:
        prepared = prepare(context.source, Path(scratch))
        ranges = collect(prepared, batches, config.calibration, config.percentile)
        write_qdq(
            prepared,
            context.directory / ENTRY,
            ranges,
            scheme,
            exclude=config.exclude,
            operators=PRODUCTS,
        )
    return Artifact(("tensorrt",), ENTRY, (ENTRY,), "int8")
