"""Keeping the scales of the parent version when a retrained network is quantised.

    q = clip(round(w / scale) + zero_point)

A scale that moves by 1 % moves most of a tensor's integers, so two versions of a network that
hardly differ have hardly a byte in common.  With the parent's scales only those integers change
whose weights did, and an update costs what was learnt.

Rules:
    * Only between networks of the same nodes and names; anything else is quantised afresh.
    * Decided for each range of activations, each weight, and each channel of one: the parent's
      scale, or one that is fitted to the parent's integers, while it costs little accuracy
      (`ACTIVATION_CLIP`, `NOISE`); else the new one, and the report says for what.
    * Biases follow: their scale is by definition that of the input times that of the weight.
Works on QDQ files as `onnxruntime.quantization` writes them; pure but for what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_agent.runtime.session import Array

ACTIVATION_CLIP: Final = 0.1
"""Share of the new range of an activation that may lie outside of the parent's.  The range is that
of the extremes of the calibration data, which few values come near."""

ACTIVATION_WIDTH: Final = 1.5
"""How much wider than needed the parent's range of an activation may be: 0.6 of a bit."""

NOISE: Final = 2.0
"""How much larger the square error of a channel may be than with a scale of its own: half a bit."""

GAIN: Final = 1.1
"""What another scale than the parent's must save at least of a channel's bits."""

_NAMED: Final = 3

_QUANTIZE: Final = "QuantizeLinear"
_DEQUANTIZE: Final = "DequantizeLinear"
_SUFFIX: Final = "_quantized"


@dataclass(frozen=True)
class Frozen:
    """What became of the parent's scales.

    Attributes:
        kept: tensors, activations and weights, that have the parent's scales throughout, or such
            as are fitted to its integers.
        renewed: the others, each with the reason.
    """

    kept: int
    renewed: tuple[str, ...]

    def note(self) -> str:
        """One line for the report."""
        total = self.kept + len(self.renewed)
        line = f"scales of the parent version kept or fitted for {self.kept} of {total} tensors"
        if self.renewed:
            named = ", ".join(self.renewed[:_NAMED])
            more = len(self.renewed) - _NAMED
            line += f"; new scales for {named}" + (f" and {more} more" if more > 0 else "")
        return line


def freeze(
    model: onnx.ModelProto,
    plain: Mapping[str, Array],
    parent: onnx.ModelProto,
    weight_limit: int,
) -> Frozen | None:
    """Give `model` the scales of `parent` where they fit; changes `model`.

    Args:
        model: the retrained network with scales of its own, QDQ.
        plain: its weights in fp32 by name, as they were before they were quantised.
        weight_limit: largest magnitude of a signed weight: 127, or 64 with a reduced range.

    Returns:
        `None` where the two are not the same network, or have nodes of another form: nothing was
        changed then.
    """
    if _shape(model) != _shape(parent):
        return None
    if any(n.op_type in (_QUANTIZE, _DEQUANTIZE) and len(n.input) != 3 for n in model.graph.node):
        return None  # a zero point may be left out; this file was not written by onnxruntime
    return _Freezer(model, plain, parent, weight_limit).run()


class _Freezer:
    def __init__(
        self,
        model: onnx.ModelProto,
        plain: Mapping[str, Array],
        parent: onnx.ModelProto,
        weight_limit: int,
    ) -> None:
        self._nodes = list(model.graph.node)
        self._stored = {item.name: item for item in model.graph.initializer}
        self._now = {name: numpy_helper.to_array(item) for name, item in self._stored.items()}
        self._fresh = dict(self._now)
        self._parents = {item.name: item for item in parent.graph.initializer}
        self._old = {name: numpy_helper.to_array(item) for name, item in self._parents.items()}
        self._plain = plain
        self._limit = weight_limit
        self._kept: set[str] = set()
        self._renewed: dict[str, str] = {}

    def run(self) -> Frozen:
        for node in self._nodes:
            if node.op_type == _QUANTIZE and node.input[1] not in self._kept | set(self._renewed):
                self._activation(node.input[1], node.input[2])
        for node in self._constants():
            if self._now[node.input[0]].dtype.itemsize == 1:
                self._weight(node)
        for node in self._constants():
            if self._now[node.input[0]].dtype == np.int32:
                self._bias(node)
        for name, array in self._now.items():
            if array is self._old.get(name):
                self._stored[name].CopyFrom(self._parents[name])  # as it was written there
            elif not np.array_equal(array, self._fresh[name]):
                self._stored[name].CopyFrom(numpy_helper.from_array(array, name))
        renewed = (f"{n.removesuffix('_scale')} ({why})" for n, why in self._renewed.items())
        return Frozen(len(self._kept), tuple(renewed))

    def _constants(self) -> Iterator[onnx.NodeProto]:
        """Nodes that give a stored tensor its real values."""
        for node in self._nodes:
            if node.op_type == _DEQUANTIZE and node.input[0] in self._now:
                yield node

    def _activation(self, scale: str, zero: str) -> None:
        if not self._comparable(scale, zero):
            self._renewed[scale] = "of another form"
            return
        low, high = _range(self._now[scale], self._now[zero])
        old_low, old_high = _range(self._old[scale], self._old[zero])
        width = high - low
        outside = max(old_low - low, high - old_high, 0.0)
        if outside > ACTIVATION_CLIP * width:
            self._renewed[scale] = f"{outside / width:.0%} of its range would be clipped"
        elif old_high - old_low > ACTIVATION_WIDTH * width:
            self._renewed[scale] = "its range has narrowed"
        else:
            self._now[scale], self._now[zero] = self._old[scale], self._old[zero]
            self._kept.add(scale)

    def _weight(self, node: onnx.NodeProto) -> None:
        name, scale, zero = node.input
        if scale in self._kept or scale in self._renewed:
            return  # shared by several nodes
        weights = self._plain.get(name.removesuffix(_SUFFIX))
        same = self._comparable(scale, zero) and self._comparable(name, zero)
        if weights is None or not same or weights.shape != self._now[name].shape:
            self._renewed[scale] = "of another form"
            return
        axis = None
        if self._now[scale].size > 1:
            axis = _axis(node, weights.ndim)
        options = [
            (self._old[scale], self._old[zero]),
            (self._fitted(weights, name, scale, zero, axis), self._old[zero]),
            (self._now[scale], self._now[zero]),
        ]
        size = weights.size / self._now[scale].size
        usual = size * np.square(self._now[scale].astype(np.float64)) / 12
        # A channel whose few weights happen to lie on the grid has hardly any error of its own.
        most = NOISE * np.maximum(self._error(weights, *options[-1], axis), usual)
        costs = []
        for option in options:
            moved = self._moved(weights, name, option, axis)
            moved[self._error(weights, *option, axis) > most] = np.inf
            costs.append(moved if option is options[0] else moved * GAIN + 1)
        lost = np.isinf(costs[0]) & np.isinf(costs[1])
        best = np.argmin(costs, axis=0)
        chosen = tuple(
            np.choose(best, [option[part] for option in options]).astype(options[0][part].dtype)
            for part in (0, 1)
        )
        for stored, values in ((scale, chosen[0]), (zero, chosen[1])):
            same = np.array_equal(values, self._old[stored])
            self._now[stored] = self._old[stored] if same else values
        self._now[name] = self._quantised(weights, self._now[scale], self._now[zero], axis)
        if lost.any():
            channels = f"{np.count_nonzero(lost)} of {lost.size} channels"
            self._renewed[scale] = "clipping" if axis is None else channels
        else:
            self._kept.add(scale)

    def _fitted(self, weights: Array, name: str, scale: str, zero: str, axis: int | None) -> Array:
        """Scales by which the parent's integers come nearest to the new weights.

        A batch normalisation that was folded into a layer multiplies a whole channel, which then
        has the same integers with another scale.
        """
        steps = self._old[name].astype(np.float64) - _spread(self._old[zero], weights.ndim, axis)
        power = _per_channel(steps * steps, axis)
        best = _per_channel(steps * weights, axis) / np.maximum(power, 1.0)
        old: Array = self._old[scale]
        best = np.where((best > 0) & (power > 0), best.reshape(old.shape), old)
        return np.asarray(best, old.dtype)

    def _moved(
        self, weights: Array, name: str, option: tuple[Array, Array], axis: int | None
    ) -> NDArray[np.float64]:
        """About the bits that a delta needs for the integers of each channel."""
        steps = self._quantised(weights, *option, axis).astype(np.int16) - self._old[name]
        bits = np.log2(1.0 + np.abs(steps.astype(np.float64)))
        return _per_channel(bits, axis).reshape(option[0].shape)

    def _bias(self, node: onnx.NodeProto) -> None:
        """A bias in units of its input's scale times its weight's."""
        name, scale, _ = node.input
        factors = self._factors(node.output[0])
        values = self._plain.get(name.removesuffix(_SUFFIX))
        if factors is None or values is None:
            return
        fresh = self._fresh[factors[0]] * self._fresh[factors[1]]
        if not np.allclose(fresh.reshape(-1), self._fresh[scale].reshape(-1), rtol=1e-3):
            return  # not such a bias: it is right as it is
        product = np.float32(self._now[factors[0]]) * np.asarray(self._now[factors[1]], np.float32)
        self._now[scale] = product.astype(np.float32).reshape(self._fresh[scale].shape)
        steps = np.round(values.astype(np.float64) / product.astype(np.float64))
        limits = np.iinfo(np.int32)
        self._now[name] = np.clip(steps, limits.min, limits.max).astype(np.int32)

    def _factors(self, bias: str) -> tuple[str, str] | None:
        """Names of the scales of input and weight of the node that adds `bias`."""
        by_output = {node.output[0]: node for node in self._nodes if node.op_type == _DEQUANTIZE}
        for node in self._nodes:
            if bias in node.input and node.op_type != _DEQUANTIZE and len(node.input) > 2:
                sources = [by_output.get(name) for name in node.input[:2]]
                if sources[0] is not None and sources[1] is not None:
                    return sources[0].input[1], sources[1].input[1]
        return None

    def _comparable(self, *names: str) -> bool:
        """Whether the parent has such tensors, of the same form; what is real must be positive."""
        for name in names:
            old, now = self._old.get(name), self._now[name]
            if old is None or old.shape != now.shape or old.dtype != now.dtype:
                return False
            if old.dtype.kind == "f" and not np.all(np.isfinite(old) & (old > 0)):
                return False
        return True

    def _quantised(self, weights: Array, scale: Array, zero: Array, axis: int | None) -> Array:
        limits = np.iinfo(zero.dtype)
        low, high = int(limits.min), int(limits.max)
        if zero.dtype == np.int8:
            low, high = -self._limit, self._limit
        steps = np.round(weights / _spread(scale, weights.ndim, axis))
        steps += _spread(zero, weights.ndim, axis)
        return np.clip(steps, low, high).astype(zero.dtype)

    def _error(
        self, weights: Array, scale: Array, zero: Array, axis: int | None
    ) -> NDArray[np.float64]:
        """Square error, for each channel, or of the whole where there are none."""
        steps = self._quantised(weights, scale, zero, axis).astype(np.float64)
        steps -= _spread(zero, weights.ndim, axis)
        difference = steps * _spread(scale, weights.ndim, axis) - weights
        return _per_channel(np.square(difference), axis).reshape(scale.shape)


def _shape(model: onnx.ModelProto) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """What two networks must have in common."""
    return [(n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node]


def _range(scale: Array, zero: Array) -> tuple[float, float]:
    """The real values that the smallest and the largest integer stand for."""
    limits = np.iinfo(zero.dtype)
    step, origin = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
    return (int(limits.min) - origin) * step, (int(limits.max) - origin) * step


def _axis(node: onnx.NodeProto, rank: int) -> int:
    given = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
    return given % rank


def _per_channel(values: NDArray[np.float64], axis: int | None) -> NDArray[np.float64]:
    """Sums of each channel, or of everything."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    return np.asarray(values.sum(axis=others), np.float64)


def _spread(values: Array, rank: int, axis: int | None) -> Array:
    """`values` in a shape that goes with a tensor of this rank."""
    if axis is None:
        return values.reshape(()) if values.size == 1 else values
    return values.reshape([-1 if each == axis else 1 for each in range(rank)])
