"""Small ONNX networks and bundles, made on the spot, for the tests of the device's rooms."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.pipeline import Pipeline, golden
from edge_agent.runtime import Session, open_session
from edge_agent.wire.manifest import (
    CostModel,
    Manifest,
    ModelSpec,
    StepSpec,
    TensorSpec,
)

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8))
SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 10))
LABEL = TensorSpec(name="label", datatype="INT64", shape=(-1,))
LABELS = tuple("0123456789")

NETWORK = ModelSpec(
    runtime="onnxruntime",
    file="model.onnx",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 8, 8)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
)

STEPS = (
    StepSpec(name="check.finite"),
    StepSpec(name="check.range", config={"min": 0, "max": 16}),
    StepSpec(name="scale", config={"factor": 0.0625}),
    StepSpec(name="rename", config={"names": {"image": "x"}}),
    StepSpec(name="model"),
    StepSpec(name="classify"),
)


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise in the digits' range, float32 [count, 8, 8]."""
    values = np.random.default_rng(seed).uniform(0, 16, size=(count, 8, 8))
    return values.astype(np.float32)


def write_linear(path: Path, seed: int = 0) -> Path:
    """x FP32 [n, 8, 8] → logits FP32 [n, 10], one matrix product with random weights."""
    weights = np.random.default_rng(seed).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "flat_shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [64, 10], weights.ravel()),
            helper.make_tensor("flat_shape", TensorProto.INT64, [2], [-1, 64]),
        ],
    )
    return _save(graph, path)


def write_quantised(path: Path) -> Path:
    """x FP32 [n, 4] → y FP32 [n, 4] through a pair of QuantizeLinear and DequantizeLinear."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
        ],
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor("step", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("zero", TensorProto.UINT8, [], [128]),
        ],
    )
    return _save(graph, path)


def write_dynamically_quantised(path: Path) -> Path:
    """As `write_linear`, in int8 with a scale that is taken from the whole batch as it comes."""
    weights = np.random.default_rng(0).integers(-127, 127, size=(64, 10)).astype(np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "flat_shape"], ["flat"]),
            helper.make_node("DynamicQuantizeLinear", ["flat"], ["q", "step", "zero"]),
            helper.make_node("MatMulInteger", ["q", "weights", "zero"], ["products"]),
            helper.make_node("Cast", ["products"], ["sums"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["sums", "step"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "factor"], ["logits"]),
        ],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            numpy_helper.from_array(weights, "weights"),
            helper.make_tensor("flat_shape", TensorProto.INT64, [2], [-1, 64]),
            helper.make_tensor("factor", TensorProto.FLOAT, [], [0.02]),
        ],
    )
    return _save(graph, path)


def write_echo(path: Path, datatype: int, axes: tuple[int | str, ...] = ("n", 3)) -> Path:
    """x [n, 3] → y [n, 3] unchanged, of any ONNX element type."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", datatype, axes)],
        [helper.make_tensor_value_info("y", datatype, axes)],
    )
    return _save(graph, path)


def write_doubling(path: Path, datatype: int) -> Path:
    """x [n, 3] → y [n, 3], twice as much, computed in float32 and rounded to `datatype`."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "wide"], ["twice"]),
            helper.make_node("Cast", ["twice"], ["y"], to=datatype),
        ],
        "doubling",
        [helper.make_tensor_value_info("x", datatype, ["n", 3])],
        [helper.make_tensor_value_info("y", datatype, ["n", 3])],
    )
    return _save(graph, path)


def write_deep(path: Path, width: int, layers: int, matrices: int = 1) -> Path:
    """x FP32 [n, width] → y FP32 [n, width]: `layers` products with `matrices` in turn."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            rng.normal(0, width**-0.5, (width, width)).astype(np.float32), f"weights{matrix}"
        )
        for matrix in range(matrices)
    ]
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [before, f"weights{layer % matrices}"], [after])
            for layer, (before, after) in enumerate(pairwise(names))
        ],
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        weights,
    )
    return _save(graph, path)


def deep_spec(runtime: str, width: int, instances: int = 1) -> ModelSpec:
    """The spec of what `write_deep` wrote."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, width)) for name in "xy")
    return ModelSpec(
        runtime=runtime, file="model.onnx", instances=instances, inputs=(x,), outputs=(y,)
    )


def open_linear(directory: Path, runtime: str = "onnxruntime", seed: int = 0) -> Session:
    path = write_linear(directory / "model.onnx", seed)
    return open_session(path, NETWORK.model_copy(update={"runtime": runtime}))


def digits_pipeline(directory: Path, seed: int = 0) -> Pipeline:
    """Checkers, scaling, the linear network and the classification."""
    return Pipeline(STEPS, open_linear(directory, seed=seed), (IMAGE,), (SCORES, LABEL))


def write_bundle(
    directory: Path,
    *,
    version: int = 1,
    seed: int = 0,
    cost_us: float | None = None,
    steps: tuple[StepSpec, ...] = STEPS,
    code: Mapping[str, str] | None = None,
    with_golden: bool = True,
) -> Manifest:
    """An unpacked bundle of the digits pipeline; different seeds answer differently."""
    directory.mkdir(parents=True, exist_ok=True)
    write_linear(directory / "model.onnx", seed)
    for name, source in (code or {}).items():
        (directory / name).write_text(source)
    manifest = Manifest(
        model="digits",
        version=version,
        profile="this-machine",
        variant="linear/fp32",
        inputs=(IMAGE,),
        outputs=(SCORES, LABEL),
        labels=LABELS,
        pipeline=steps,
        code=tuple(code or ()),
        network=NETWORK,
        golden="golden.npz" if with_golden else None,
        cost=None if cost_us is None else CostModel(per_item_us=0, fixed_us=cost_us),
        files=(),
    )
    if with_golden:
        pipeline = Pipeline.open(directory, manifest)
        inputs = {"image": images(3, seed=7)}
        golden.write(directory / "golden.npz", inputs, pipeline.run(inputs).tensors)
        pipeline.close()
    (directory / "manifest.json").write_bytes(manifest.encode())
    return manifest


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path
