"""A network of two classes that stands alone, and rows for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def network(path: Path, hidden: int = 16) -> Path:
    """Two classes by the sign of the first of 4 numbers, through `hidden` units."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.1, (4, hidden)).astype(np.float32)
    first[0] = np.linspace(-1, 1, hidden)
    last = np.stack([-first[0], first[0]], axis=1).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["h"], "one"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "last"], ["y"], "two"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def save_rows(path: Path) -> Path:
    x = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    np.savez(path, x=x, labels=(x[:, 0] > 0).astype(np.int64))
    return path
