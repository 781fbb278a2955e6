"""Small networks of the kinds that recipes differ over, written without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.runtime import Tensors

WIDTH = 64
STEPS = 16


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: Tensors,
    shape: tuple[int, ...],
    domains: tuple[str, ...] = (),
) -> Path:
    """A network of one input "x" and one output "y" with a free batch axis."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return path


def _random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    scale = 1 / np.sqrt(shape[0])
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def perceptron(path: Path, inner: int = 1024) -> Path:
    """x [n, 64] through a hidden layer to y [n, 10]; the first matrix has 64 · inner numbers."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "v", "b"], ["y"], "last"),
    ]
    weights = {"w": _random(WIDTH, inner), "v": _random(inner, 10, seed=1)}
    weights |= {"a": _random(inner, seed=2), "b": _random(10, seed=3)}
    return write(path, nodes, weights, (WIDTH,))


def attention(path: Path) -> Path:
    """One block of self-attention over x [n, 16, 64]."""
    weights = {
        name: _random(WIDTH, WIDTH, seed=seed) for seed, name in enumerate(("wq", "wk", "wv"))
    }
    weights |= {
        "gain": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32),
        "shift": np.linspace(-0.5, 0.5, WIDTH, dtype=np.float32),
        "half": np.array(1 / np.sqrt(WIDTH), np.float32),
        "last": _random(WIDTH, 10, seed=3),
    }
    nodes = [
        *(
            helper.make_node("MatMul", ["x", f"w{name}"], [name], f"to_{name}")
            for name in ("q", "k", "v")
        ),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["raw"], "scores"),
        helper.make_node("Mul", ["raw", "half"], ["scaled"], "scale"),
        helper.make_node("Softmax", ["scaled"], ["shares"], "softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], "mix"),
        helper.make_node("Add", ["x", "mixed"], ["sum"], "residual"),
        helper.make_node("LayerNormalization", ["sum", "gain", "shift"], ["norm"], "norm"),
        helper.make_node("MatMul", ["norm", "last"], ["y"], "head"),
    ]
    return write(path, nodes, weights, (STEPS, WIDTH))


def recurrent(path: Path) -> Path:
    """An LSTM over x [n, 16, 64] that answers with its last state."""
    hidden = 32
    weights = {
        "w": _random(1, 4 * hidden, WIDTH) / 8,
        "r": _random(1, 4 * hidden, hidden, seed=1) / 8,
        "b": np.zeros((1, 8 * hidden), np.float32),
        "axis": np.array([0], np.int64),
        "last": _random(hidden, 10, seed=2),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["", "state"], "lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["state", "axis"], ["s"], "squeeze"),
        helper.make_node("MatMul", ["s", "last"], ["y"], "head"),
    ]
    return write(path, nodes, weights, (STEPS, WIDTH))


def convolutions(path: Path) -> Path:
    """Convolution, depthwise convolution, pooling and a last layer over x [n, 3, 16, 16]."""
    weights = {
        "w": _random(8, 3, 3, 3) / 3,
        "b": _random(8, seed=1),
        "d": _random(8, 1, 3, 3, seed=2),
        "last": _random(8, 10, seed=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "d"], ["e"], "depthwise", group=8, pads=[1] * 4),
        helper.make_node("Relu", ["e"], ["s"], "relu_2"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "last"], ["y"], "head"),
    ]
    return write(path, nodes, weights, (3, 16, 16))


SHAPES = {
    "perceptron": (WIDTH,),
    "attention": (STEPS, WIDTH),
    "recurrent": (STEPS, WIDTH),
    "convolutions": (3, 16, 16),
}
"""Shape of one row of each network."""

NETWORKS = {
    "perceptron": perceptron,
    "attention": attention,
    "recurrent": recurrent,
    "convolutions": convolutions,
}


def rows(network: str, count: int = 64) -> Tensors:
    """Inputs for a network of that name."""
    values = np.random.default_rng(5).normal(0.3, 1, (count, *SHAPES[network]))
    return {"x": values.astype(np.float32)}
