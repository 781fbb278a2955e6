"""Recipes for ONNX Runtime: the slim network, and static int8.

int8 is QDQ: QOperator runs several times slower on x86.  Weights are S8 per channel.  Activations
are U8 on x86 and S8 on ARM, which is what the kernels of each are written for.

Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from pydantic import Field

from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import RuntimeName
from optimizer.passes.calibration import Method, Range, collect
from optimizer.passes.census import products
from optimizer.passes.context import Artifact, PassContext, RecipeConfig
from optimizer.passes.frozen import freeze
from optimizer.passes.qdq import Scheme, Width, prepare, write_qdq
from optimizer.passes.registry import recipe
from optimizer.passes.slim import slimmed
from optimizer.saturation import (
    SaturationReport,
    relative_error,
    saturates,
    saturation_risk,
)

log = logging.getLogger("skerry.optimizer")

ENTRY: Final = "model.onnx"
RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino", "tensorrt")
"""What opens ONNX files in fp32."""

QDQ_RUNTIMES: Final[tuple[RuntimeName, ...]] = ("onnxruntime", "openvino")
"""What opens QDQ files with zero points and 32-bit biases; TensorRT has a recipe of its own."""

_SATURATION_ROWS: Final = (4, 64)
_EMULATED_PRODUCTS: Final = 10**9
"""Rows that are emulated, at least and at most, and multiplications that decide between these: a
thousand million take about a second."""

_WORTH_HALF_THE_SPEED: Final = 0.4
"""U8·U8 runs at about half the speed of U8·S8: its error must be this small a part of the other."""


class OrtInt8(RecipeConfig):
    """Config of `ort-int8`.

    Attributes:
        rows: calibration rows at most.
        batch: rows held in memory at a time.
        calibration: "minmax" takes the extremes; "entropy" and "percentile" clip them.
        percentile: share of the values that stays, in percent.
        per_channel: one scale for each output channel of a weight.
        reduce_range: 7-bit weights; `None` decides by the profile's instruction set and by what
            saturates on the calibration data.
        weights: "u8" for kernels that cannot saturate; `None` decides likewise.
        exclude: nodes to leave in fp32.
    """

    rows: Annotated[int, Field(ge=1)] = 512
    batch: Annotated[int, Field(ge=1)] = 32
    calibration: Method = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    per_channel: bool = True
    reduce_range: bool | None = None
    weights: Width | None = None
    exclude: tuple[str, ...] = ()


class OrtInt8Entropy(OrtInt8):
    """Config of `ort-int8-entropy`: that of `ort-int8` with another calibration."""

    calibration: Method = "entropy"


class OrtInt8Percentile(OrtInt8):
    """Config of `ort-int8-percentile`: that of `ort-int8` with another calibration."""

    calibration: Method = "percentile"


@recipe("fp32", runtimes=RUNTIMES, precision="fp32", config=RecipeConfig)
def fp32(context: PassContext, config: RecipeConfig) -> Artifact:
    """The exported network without what computes nothing; the runtime fuses it when it opens it."""
    model = slimmed(context.source)
    (context.directory / ENTRY).write_bytes(model.SerializeToString(deterministic=True))
    return Artifact(RUNTIMES, ENTRY, (ENTRY,), "fp32")


@recipe("ort-int8", runtimes=QDQ_RUNTIMES, precision="int8", config=OrtInt8)
def ort_int8(context: PassContext, config: OrtInt8) -> Artifact:
    """Static QDQ quantisation with calibration that streams.

    Where x86 adds pairs of U8·S8 products into 16 bits (see `saturation`), weights of 7 bits cannot
    saturate and U8·U8 does not.  That is decided by the instruction set of the profile, not of this
    machine: full range where nothing saturates on calibration data, else what comes nearest to
    fp32.

    A retrained network keeps the scales of its parent where they fit: see `frozen`.
    """
    batches = context.calibration_batches(config.rows, config.batch)
    with tempfile.TemporaryDirectory(prefix="skerry-ort-") as scratch:
        prepared = prepare(context.source, Path(scratch))
        ranges = collect(prepared, batches, config.calibration, config.percentile)
        work = _Quantiser(context, config, prepared, ranges)
        made = work.run()
    scheme = made.scheme
    log.info("pass.ort_int8 profile=%s scheme=%s", context.profile.name, scheme)
    runtimes = QDQ_RUNTIMES if scheme.weights == "s8" else QDQ_RUNTIMES[:1]
    return Artifact(runtimes, ENTRY, (ENTRY,), "int8", made.notes)


recipe("ort-int8-entropy", runtimes=QDQ_RUNTIMES, precision="int8", config=OrtInt8Entropy)(ort_int8)
recipe("ort-int8-percentile", runtimes=QDQ_RUNTIMES, precision="int8", config=OrtInt8Percentile)(
    ort_int8
)


@dataclass(frozen=True)
class _Made:
    scheme: Scheme
    notes: tuple[str, ...]


class _Quantiser:
    """Writes the file in one scheme, or in the best of several."""

    def __init__(
        self, context: PassContext, config: OrtInt8, prepared: Path, ranges: Mapping[str, Range]
    ) -> None:
        self._context, self._config = context, config
        self._prepared, self._ranges = prepared, ranges
        self._entry = context.directory / ENTRY

    def run(self) -> _Made:
        config, profile = self._config, self._context.profile
        scheme = replace(Scheme.for_profile(profile), per_channel=config.per_channel)
        if config.weights is not None:
            scheme = replace(scheme, weights=config.weights)
        if config.reduce_range is not None:
            return self._write(replace(scheme, reduce_range=config.reduce_range))
        if config.weights is not None or not saturates(profile):
            return self._write(scheme)
        return self._by_what_saturates(scheme)

    def _by_what_saturates(self, scheme: Scheme) -> _Made:
        """Full range if nothing saturates; else the scheme that comes nearest to fp32."""
        context = self._context
        cost = sum(each.multiplications for each in products(onnx.load(str(self._prepared))))
        rows = int(np.clip(_EMULATED_PRODUCTS // max(cost, 1), *_SATURATION_ROWS))
        samples = context.calibration_batches(rows, rows)[0]
        full = self._write(scheme)
        risk = saturation_risk(self._entry, samples, context.profile)
        if not risk.saturated:
            return replace(full, notes=(*full.notes, risk.note()))
        wanted = _answers(self._prepared, samples)
        errors = {scheme: relative_error(risk.answers, wanted)}
        for other in (scheme.reduced(), scheme.unsigned()):
            self._write(other)
            errors[other] = relative_error(_answers(self._entry, samples), wanted)
        best = _choose(scheme, errors)
        made = self._write(best)
        return replace(made, notes=(*made.notes, _decision(risk, best, errors)))

    def _write(self, scheme: Scheme) -> _Made:
        config = self._config
        write_qdq(
            self._prepared,
            self._entry,
            self._ranges,
            scheme,
            exclude=config.exclude,
        )
        notes = _keep_scales(self._context, self._prepared, scheme.weight_limit)
        return _Made(scheme, notes)


def _choose(full: Scheme, errors: Mapping[Scheme, float]) -> Scheme:
    fast = min((full.reduced(), full), key=lambda scheme: errors[scheme])
    unsigned = full.unsigned()
    return unsigned if errors[unsigned] < _WORTH_HALF_THE_SPEED * errors[fast] else fast


def _decision(risk: SaturationReport, chosen: Scheme, errors: Mapping[Scheme, float]) -> str:
    compared = ", ".join(f"{scheme} {error:.2%}" for scheme, error in errors.items())
    return f"{risk.note()}; {chosen} is chosen (distance to fp32 as such a CPU answers: {compared})"


def _answers(path: Path, samples: Tensors) -> Tensors:
    """The answers of a network that does not saturate anywhere."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    feeds = {item.name: samples[item.name] for item in session.get_inputs()}
    return dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))


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
