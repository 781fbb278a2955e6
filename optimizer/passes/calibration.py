"""Ranges of a network's activations on calibration data, with memory that does not grow with it.

Three methods, each of which sees every value:
    minmax        the extremes
    percentile    what is left when the outermost values are cut off
    entropy       the clipping whose quantised distribution is nearest to the real one

The data passes through once for the extremes, which the network itself reduces to two numbers per
tensor, and for the other methods once more for histograms between these.  A pass holds one run's
activations; how many rows a run takes follows from their size.

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017 (the search by Kullback-Leibler
divergence).  `onnxruntime.quantization` keeps the activations of all rows for the same purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_agent.runtime import Tensors
from optimizer.errors import RecipeFailed
from optimizer.passes.context import Batches

Method = Literal["minmax", "percentile", "entropy"]

BINS: Final = 4096
"""Bins of a histogram, spread evenly over both signs."""

MAX_RUN_BYTES: Final = 64 * 1024 * 1024
"""Activations that one run may hold while histograms are taken."""

_LEVELS: Final = 128
"""Steps of a quantised magnitude."""

_ENOUGH: Final = 32
"""Values per bin, on average, below which a histogram is mostly chance."""

_STRIDE: Final = 8
"""Clippings that are tried lie this many bins apart."""

_LOW, _HIGH, _SUM = "/lowest", "/highest", "/sum"
_REDUCED: Final = (("ReduceMin", _LOW), ("ReduceMax", _HIGH), ("ReduceL1", _SUM))
"""Extremes pass over NaN; a sum of magnitudes does not."""


@dataclass(frozen=True)
class Range:
    """Smallest and largest value that is worth a step of its own; both finite, low <= high."""

    low: float
    high: float


def collect(
    path: Path, batches: Batches, method: Method = "minmax", percentile: float = 99.99
) -> dict[str, Range]:
    """The range of every floating-point tensor that a node takes or gives, constants excepted.

    A tensor that holds infinity, as what a mask hides from attention does, has none.

    Args:
        path: an ONNX file with inferred shapes, fp32.
        percentile: share of the values that stays, in percent, for that method.

    Raises:
        RecipeFailed: a tensor holds NaN on the data.
    """
    model = onnx.load(str(path))
    extremes = _extremes(model, _activations(model), batches)
    names = list(extremes)
    if method == "minmax":
        return extremes
    counts = _histograms(model, names, extremes, batches)
    ranges = {}
    for name, histogram in counts.items():
        outer = extremes[name]
        if method == "percentile":
            ranges[name] = cut(histogram, outer, percentile)
        else:
            ranges[name] = nearest(histogram, outer)
    return ranges


def cut(histogram: NDArray[np.int64], outer: Range, percentile: float) -> Range:
    """`outer` without the values beyond `percentile`, half of them on each side.

    Args:
        histogram: counts in bins over ±the largest magnitude of `outer`, ascending.
    """
    if outer.low == outer.high:
        return outer
    edges = _edges(outer)
    share = np.concatenate([[0.0], np.cumsum(histogram) / max(histogram.sum(), 1)])
    beyond = (100.0 - percentile) / 200.0
    inner = np.interp([beyond, 1.0 - beyond], share, edges)
    return Range(max(outer.low, float(inner[0])), min(outer.high, float(inner[1])))


def nearest(histogram: NDArray[np.int64], outer: Range) -> Range:
    """`outer` clipped where quantising loses least information about the distribution.

    Bins are joined until they hold enough values to tell a distribution from chance; too few values
    for that are not clipped at all.  Zeros, of which a ReLU makes many, are represented exactly
    whatever the clipping, and do not count.
    """
    half = BINS // 2
    magnitudes = (histogram[half:] + histogram[:half][::-1]).astype(np.float64)
    magnitudes[0] = magnitudes[1]
    while magnitudes.sum() < _ENOUGH * len(magnitudes):
        if len(magnitudes) <= 2 * _LEVELS:
            return outer
        magnitudes = magnitudes.reshape(-1, 2).sum(axis=1)
    best, lost = len(magnitudes), np.inf
    for width in range(_LEVELS, len(magnitudes) + 1, _STRIDE):
        divergence = _divergence(magnitudes, width)
        if divergence < lost:
            best, lost = width, divergence
    limit = best / len(magnitudes) * max(abs(outer.low), abs(outer.high))
    return Range(max(outer.low, -limit), min(outer.high, limit))


def _divergence(magnitudes: NDArray[np.float64], width: int) -> float:
    """Kullback-Leibler divergence of the first `width` bins, clipped, from their quantised form."""
    kept = magnitudes[:width].copy()
    present = kept > 0
    starts = np.arange(_LEVELS) * width // _LEVELS
    sizes = np.add.reduceat(present.astype(np.int64), starts)
    means = np.add.reduceat(kept, starts) / np.maximum(sizes, 1)
    spread = np.repeat(means, np.diff(np.append(starts, width))) * present
    kept[-1] += magnitudes[width:].sum()  # what is clipped lands in the last bin
    if not spread.sum():
        return float(np.inf)
    real, quantised = kept / kept.sum(), spread / spread.sum()
    seen = real > 0
    if np.any(quantised[seen] == 0):  # the last bin was empty but for what was clipped
        quantised = np.where(seen & (quantised == 0), 1e-9, quantised)
    return float(np.sum(real[seen] * np.log(real[seen] / quantised[seen])))


def _activations(model: onnx.ModelProto) -> list[str]:
    """Names of the floating-point tensors between nodes, inputs and outputs included."""
    graph = model.graph
    kinds = {
        item.name: item.type.tensor_type.elem_type
        for item in (*graph.input, *graph.value_info, *graph.output)
    }
    constants = {item.name for item in graph.initializer}
    found = dict.fromkeys(name for node in graph.node for name in (*node.input, *node.output))
    return [
        name
        for name in found
        if kinds.get(name) == TensorProto.FLOAT and name not in constants and name
    ]


def _extremes(model: onnx.ModelProto, names: Sequence[str], batches: Batches) -> dict[str, Range]:
    """Smallest and largest value of each tensor, reduced within the network.

    Raises:
        RecipeFailed: see `collect`.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    del graph.output[:]
    for name in names:
        for operator, suffix in _REDUCED:
            graph.node.append(helper.make_node(operator, [name], [name + suffix], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(name + suffix, TensorProto.FLOAT, []))
    lowest = np.full(len(names), np.inf, np.float32)
    highest = np.full(len(names), -np.inf, np.float32)
    for values in _runs(watched, batches):
        for name in names:
            if np.isnan(values[name + _SUM]):
                raise RecipeFailed(f"tensor '{name}' holds NaN on the calibration data")
        lowest = np.minimum(lowest, [values[name + _LOW] for name in names])
        highest = np.maximum(highest, [values[name + _HIGH] for name in names])
    return {
        name: Range(float(low), float(high))
        for name, low, high in zip(names, lowest, highest, strict=True)
        if np.isfinite((low, high)).all()
    }


def _histograms(
    model: onnx.ModelProto,
    names: Sequence[str],
    extremes: Mapping[str, Range],
    batches: Batches,
) -> dict[str, NDArray[np.int64]]:
    """Counts of each tensor's values in `BINS` bins over ± its largest magnitude."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    inputs = {item.name for item in graph.input}
    del graph.output[:]
    shown = [name for name in names if name not in inputs]
    for name in shown:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    per_row = sum(value.nbytes for value in next(_runs(watched, batches.of(1))).values())
    rows = max(1, min(batches.batch, MAX_RUN_BYTES // max(per_row, 1)))
    for values in _runs(watched, batches.of(rows), with_inputs=True):
        for name in names:
            counts[name] += _count(values[name], extremes[name])
    return counts


def _count(values: NDArray[np.float32], outer: Range) -> NDArray[np.int64]:
    edges = _edges(outer)
    counted, _ = np.histogram(values, BINS, (float(edges[0]), float(edges[-1])))
    return np.asarray(counted, np.int64)


def _edges(outer: Range) -> NDArray[np.float64]:
    limit = max(abs(outer.low), abs(outer.high), float(np.finfo(np.float32).tiny))
    return np.linspace(-limit, limit, BINS + 1)


def _runs(
    model: onnx.ModelProto, batches: Batches, *, with_inputs: bool = False
) -> Iterator[Tensors]:
    """The outputs of `model` for each batch, one at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Every tensor that is asked for must be there as the file has it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Arenas keep what the largest run needed, for every shape that came by.
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_outputs()]
    wanted = [item.name for item in session.get_inputs()]
    for batch in batches:
        feeds = {name: batch[name] for name in wanted}
        values = dict(zip(names, session.run(names, feeds), strict=True))
        yield {**values, **feeds} if with_inputs else values
