"""A small real task: scikit-learn's digits, and two convolutional networks made without torch.

Filters are random and fixed, the last layer is fitted by least squares: networks that classify well
are there in milliseconds, and their ONNX files have the operators that quantisers work on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from edge_agent.runtime import open_session
from edge_agent.wire.manifest import ModelSpec, StepSpec, TensorSpec
from optimizer.budget import Budget
from optimizer.evaluate import EvalData
from optimizer.task import OptimizeTask, TrainedMember

STEPS = """
import numpy as np
from edge_agent.pipeline import processor

@processor("digits.prepare")
def prepare(tensors, *, factor: float = 1 / 16):
    return {"x": (tensors["image"] * np.float32(factor))[:, None]}
"""


@dataclass(frozen=True)
class Digits:
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def part(self, start: int, stop: int) -> Digits:
        return Digits(self.images[start:stop], self.labels[start:stop])


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    return Digits(data.images.astype(np.float32), data.target.astype(np.int64))


def _network(filters: int, last: tuple[NDArray[np.float32], NDArray[np.float32]] | None):
    """Conv, Relu, MaxPool, Flatten and, with `last`, Gemm: x [n, 1, 8, 8] to logits [n, 10]."""
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.normal(0, 0.6, (filters, 1, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.2, filters).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["features"], "flatten"),
    ]
    output, width = "features", filters * 16
    if last is not None:
        weights |= {"v": last[0], "a": last[1]}
        nodes.append(helper.make_node("Gemm", ["features", "v", "a"], ["logits"], "last"))
        output, width = "logits", 10
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def _fitted(path: Path, filters: int, data: Digits) -> Path:
    x = (data.images / 16)[:, None]
    onnx.save(_network(filters, None), str(path))
    spec = ModelSpec(runtime="onnxruntime", file=path.name, inputs=(), outputs=())
    session = open_session(path, spec)
    features = session.run({"x": x})["features"]
    session.close()
    design = np.hstack([features, np.ones((len(features), 1), np.float32)])
    wanted = 8 * (np.eye(10)[data.labels] - 0.1)
    ridge = 1e-1 * np.eye(design.shape[1])
    solved = np.linalg.solve(design.T @ design + ridge, design.T @ wanted).astype(np.float32)
    onnx.save(_network(filters, (solved[:-1], solved[-1])), str(path))
    return path


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> tuple[TrainedMember, ...]:
    directory = tmp_path_factory.mktemp("members")
    train = digits.part(0, 1200)
    return tuple(
        TrainedMember(name, _fitted(directory / f"{name}.onnx", filters, train))
        for name, filters in (("small", 2), ("large", 24))
    )


@pytest.fixture
def task(tmp_path: Path, digits: Digits, members: tuple[TrainedMember, ...]) -> OptimizeTask:
    return digits_task(tmp_path, digits, members)


def digits_task(
    directory: Path, digits: Digits, members: tuple[TrainedMember, ...]
) -> OptimizeTask:
    """ONNX Runtime only, on this architecture, with a budget that is easily met."""
    steps = directory / "steps.py"
    steps.write_text(STEPS)
    judged = digits.part(1200, 1500)
    labels = tuple("0123456789")
    return OptimizeTask(
        model="digits",
        version=3,
        members=members,
        profiles={"this-machine": Budget(latency_ms=500, percentile=0.9)},
        pipeline=(
            StepSpec(name="check.range", config={"min": 0, "max": 16}),
            StepSpec(name="digits.prepare"),
            StepSpec(name="model"),
            StepSpec(name="classify"),
        ),
        inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8)),),
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=(-1, 10)),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        ),
        labels=labels,
        calibration={"image": digits.images[:256]},
        data=EvalData({"image": judged.images}, judged.labels, labels),
        golden={"image": digits.images[1500:1600]},
        out_dir=directory / "bundles",
        code=(steps,),
        quick=True,
        recipes=(StepSpec(name="fp32"), StepSpec(name="ort-int8")),
    )


def only(task: OptimizeTask, member: str, recipe: str) -> OptimizeTask:
    """`task` with one member and one recipe."""
    chosen = tuple(one for one in task.members if one.name == member)
    return replace(task, members=chosen, recipes=(StepSpec(name=recipe),))
