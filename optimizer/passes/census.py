"""What a network multiplies: how much of it, in which operators, by which constants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import onnx

RECURRENT = ("LSTM", "GRU", "RNN")
CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a constant.

    Attributes:
        weights: numbers in the constant.
        multiplications: for one row of the batch; free axes other than the batch count as one.
    """

    name: str
    operator: str
    weights: int
    multiplications: int


def products(model: onnx.ModelProto) -> list[Product]:
    """Every node that multiplies by a constant, in the order of the file."""
    shaped = onnx.shape_inference.infer_shapes(model)
    sizes = {item.name: prod(item.dims) for item in model.graph.initializer}
    places = {
        item.name: _row_size(item)
        for item in (*shaped.graph.value_info, *shaped.graph.output, *shaped.graph.input)
    }
    found = []
    for node in model.graph.node:
        if node.op_type not in (*RECURRENT, *CONVOLUTIONS, *PRODUCTS):
            continue
        weights = max((sizes.get(name, 0) for name in node.input[1:]), default=0)
        if weights:
            found.append(Product(node.name, node.op_type, weights, weights * _times(node, places)))
    return found


def shares(model: onnx.ModelProto) -> dict[str, float]:
    """The share of each operator in all multiplications by constants."""
    counts: Counter[str] = Counter()
    for each in products(model):
        counts[each.operator] += each.multiplications
    total = sum(counts.values())
    return {operator: count / total for operator, count in counts.items()}


def _times(node: onnx.NodeProto, places: dict[str, list[int]]) -> int:
    """How often each weight is used for one row."""
    shape = places.get(node.output[0], [])
    if node.op_type in CONVOLUTIONS:
        return max(1, prod(shape[2:]))  # places of the kernel
    if node.op_type in RECURRENT:
        steps = places.get(node.input[0], [])
        return max(1, prod(steps[:-2] if len(steps) > 2 else []))
    return max(1, prod(shape[1:-1]))


def _row_size(item: onnx.ValueInfoProto) -> list[int]:
    """The shape with 1 for free axes."""
    axes = item.type.tensor_type.shape.dim
    return [max(1, axis.dim_value) for axis in axes]
