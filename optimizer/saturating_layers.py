"""The layers of a QDQ network that x86 computes with saturating pair sums, in integers.

Owns finding them and computing them; see `saturation` for what it is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_agent.runtime import Array

_LIMITS: Final = np.iinfo(np.int16)
_SIGN: Final = 128
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FUSED: Final = ("Relu", "Clip")
"""What ONNX Runtime joins with the quantisation that follows."""
_PLAIN_PADS: Final = (b"", b"NOTSET", b"VALID")


@dataclass(frozen=True)
class Result:
    """A layer's output in real numbers, and what saturated on the way.

    Attributes:
        changed, power: sums of squares of the output's change, and of the exact output.
    """

    output: NDArray[np.float32]
    pairs: int
    saturated: int
    changed: float
    power: float


def pair_sums(
    rows: NDArray[np.uint8], columns: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """`rows` times `columns`: exactly, what saturation takes off, and how many sums saturate.

    Args:
        rows: [p, k].
        columns: [k, m].

    Returns:
        Exact products [p, m]; the excess of saturating pair sums [p, m]; their count.
    """
    exact = np.rint(rows.astype(np.float64) @ columns.astype(np.float64)).astype(np.int64)
    excess = np.zeros_like(exact)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
        columns = np.pad(columns, ((0, 1), (0, 0)))
    weights = columns.astype(np.int32)
    largest = rows.max(axis=0, initial=0).astype(np.int32)[:, None]
    above = np.maximum(weights, 0) * largest
    below = np.minimum(weights, 0) * largest
    possible = (above[::2] + above[1::2] > _LIMITS.max) | (below[::2] + below[1::2] < _LIMITS.min)
    count = 0
    for pair in np.flatnonzero(possible.any(axis=1)):
        chosen = np.flatnonzero(possible[pair])
        left, right = rows[:, 2 * pair, None], rows[:, 2 * pair + 1, None]
        sums = left * weights[2 * pair, chosen] + right * weights[2 * pair + 1, chosen]
        over = sums - np.clip(sums, _LIMITS.min, _LIMITS.max)
        excess[:, chosen] += over
        count += int(np.count_nonzero(over))
    return exact, excess, count


@dataclass(frozen=True)
class Layer:
    """One product by quantised weights.

    Attributes:
        output: name of the tensor it gives, real numbers.
        input: name of the quantised tensor it takes.
        bias: name of the real tensor that is added, if any.
        weights: [groups, k, m], in the order of the kernels.
        window: `None` for a matrix.
    """

    name: str
    operator: str
    output: str
    input: str
    bias: str | None
    bias_values: NDArray[np.float32] | None
    weights: NDArray[np.int8]
    scale: NDArray[np.float64]
    zero: int
    window: Window | None

    def compute(self, taken: Array, bias: Array | None, *, saturate: bool) -> Result:
        """The layer's output for one batch.

        Args:
            taken: the quantised input, 8 bits.
            bias: real, of the output's last axis; the stored one where `None`.
        """
        values, zero = taken, self.zero
        if values.dtype == np.int8:
            values, zero = (values.astype(np.int16) + _SIGN).astype(np.uint8), zero + _SIGN
        added = self.bias_values if bias is None else bias
        pairs = saturated = 0
        changed = power = 0.0
        parts = []
        for rows in self._rows(values, zero):
            outputs = []
            for group, columns in zip(rows, self.weights, strict=True):
                exact, excess, count = pair_sums(group, columns)
                correction = zero * columns.astype(np.int64).sum(axis=0)
                outputs.append((exact - correction, excess))
                pairs += exact.size * -(-columns.shape[0] // 2)
                saturated += count
            real = np.concatenate([each for each, _ in outputs], axis=1) * self.scale
            over = np.concatenate([each for _, each in outputs], axis=1) * self.scale
            if added is not None:
                real = real + np.reshape(added, -1)
            changed += float(np.square(over).sum())
            power += float(np.square(real).sum())
            parts.append((real - over if saturate else real).astype(np.float32))
        output = self._shaped(taken.shape, parts)
        return Result(output, pairs, saturated, changed, power)

    def _rows(self, values: NDArray[np.uint8], zero: int) -> Iterator[list[NDArray[np.uint8]]]:
        """The rows [p, k] of each group, one item at a time where there is a window."""
        if self.window is None:
            yield [values.reshape(-1, values.shape[-1])]
            return
        for item in values:
            yield self.window.patches(item, zero, len(self.weights))

    def _shaped(
        self, shape: tuple[int, ...], parts: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        if self.window is None:
            return parts[0].reshape(*shape[:-1], -1)
        places = self.window.places(shape[2:])
        items = [part.reshape(*places, -1) for part in parts]
        return np.ascontiguousarray(np.moveaxis(np.stack(items), -1, 1))


@dataclass(frozen=True)
class Window:
    """How a convolution's kernel moves; one entry for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def patches(self, item: NDArray[np.uint8], zero: int, groups: int) -> list[NDArray[np.uint8]]:
        """`item` [c, …] as one matrix [places, positions · c / groups] for each group."""
        sides = [(0, 0), *zip(self.before, self.after, strict=True)]
        padded = np.pad(item, sides, constant_values=zero)
        axes = tuple(range(1, item.ndim))
        spans = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        seen = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
        steps = tuple(slice(None, None, step) for step in self.strides)
        holes = tuple(slice(None, None, step) for step in self.dilations)
        seen = seen[(slice(None), *steps, *holes)]
        rank = len(self.kernel)
        order = (*range(1, 1 + rank), *range(1 + rank, 1 + 2 * rank), 0)
        spread = seen.transpose(order)  # places, positions, channels
        each = item.shape[0] // groups
        rows = int(np.prod(spread.shape[:rank]))
        return [
            spread[..., group * each : (group + 1) * each].reshape(rows, -1)
            for group in range(groups)
        ]

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many places the kernel takes along each axis."""
        axes = zip(
            size, self.before, self.after, self.kernel, self.dilations, self.strides, strict=True
        )
        return tuple((n + a + b - (d * (k - 1) + 1)) // s + 1 for n, a, b, k, d, s in axes)


def find_layers(model: onnx.ModelProto) -> dict[str, Layer]:
    """The layers whose pair sums can saturate, by the name of their output."""
    graph = _Graph(model)
    found = {}
    for node in model.graph.node:
        layer = graph.layer(node)
        if layer is not None:
            found[layer.output] = layer
    return found


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._stored = {item.name: item for item in model.graph.initializer}
        self._made = {name: node for node in model.graph.node for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def layer(self, node: onnx.NodeProto) -> Layer | None:
        """`node` as a layer that saturates, or `None`."""
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            return None
        left, right = (self._made.get(name) for name in node.input[:2])
        if not _dequantizes(left) or not _dequantizes(right) or left is None or right is None:
            return None
        weights, scales, zeros = (self._constant(name) for name in _three(right))
        scale, zero = (self._constant(name) for name in _three(left)[1:])
        signed = weights is not None and weights.dtype == np.int8 and scales is not None
        plain = zeros is None or not np.any(zeros)
        if not signed or not plain or weights is None or scales is None or scale is None:
            return None
        if scale.size != 1 or (zero is not None and zero.dtype.itemsize != 1):
            return None
        options = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        columns, window = _columns(node.op_type, weights, options)
        if columns is None or (window is not None and not self._is_quantised(node.output[0])):
            return None
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        return Layer(
            name=node.name or node.output[0],
            operator=node.op_type,
            output=node.output[0],
            input=left.input[0],
            bias=bias if bias not in self._stored else None,
            bias_values=None if bias is None else self._constant(bias),
            weights=columns,
            scale=(float(scale.reshape(-1)[0]) * scales.astype(np.float64)).reshape(-1),
            zero=0 if zero is None else int(zero.reshape(-1)[0]),
            window=window,
        )

    def _constant(self, name: str) -> Array | None:
        item = self._stored.get(name)
        return None if item is None else numpy_helper.to_array(item)

    def _is_quantised(self, name: str) -> bool:
        """Whether only quantisation uses the tensor: else a convolution runs in fp32."""
        users = self._users.get(name, [])
        return bool(users) and all(
            node.op_type == _QUANTIZE
            or (node.op_type in _FUSED and self._is_quantised(node.output[0]))
            for node in users
        )


def _dequantizes(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == _DEQUANTIZE


def _three(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.input[0], node.input[1], node.input[2] if len(node.input) > 2 else ""


def _columns(
    operator: str, weights: Array, options: Mapping[str, object]
) -> tuple[NDArray[np.int8] | None, Window | None]:
    """The weights as [groups, k, m], and the window of a convolution; None for what is exact."""
    if operator == "Conv":
        return _kernel(weights, options)
    if weights.ndim != 2 or options.get("transA") or options.get("alpha", 1.0) != 1.0:
        return None, None
    if options.get("beta", 1.0) != 1.0:
        return None, None
    return (weights.T if options.get("transB") else weights)[None], None


def _kernel(
    weights: Array, options: Mapping[str, object]
) -> tuple[NDArray[np.int8] | None, Window | None]:
    groups = _number(options.get("group", 1))
    channels, each, *kernel = weights.shape
    rank = len(kernel)
    if (each == 1 and channels == groups) or options.get("auto_pad", b"") not in _PLAIN_PADS:
        return None, None
    pads = _numbers(options.get("pads"), (0,) * (2 * rank))
    window = Window(
        kernel=tuple(kernel),
        strides=_numbers(options.get("strides"), (1,) * rank),
        dilations=_numbers(options.get("dilations"), (1,) * rank),
        before=pads[:rank],
        after=pads[rank:],
    )
    ordered = weights.reshape(groups, channels // groups, each, -1)
    return ordered.transpose(0, 3, 2, 1).reshape(groups, -1, channels // groups), window


def _number(value: object) -> int:
    return int(value) if isinstance(value, int) else 1


def _numbers(value: object, usual: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(each) for each in value) if isinstance(value, Sequence) else usual
