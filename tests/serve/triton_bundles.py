"""Bundles and a running event loop for the tests with the protocol's own client, tritonclient."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import onnx
import uvloop
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_agent.serve import DataPlane, ServedModel
from edge_agent.wire.manifest import (
    CostModel,
    Datatype,
    Manifest,
    ModelSpec,
    StepSpec,
    TensorSpec,
)

DATATYPES: tuple[Datatype, ...] = get_args(Datatype)

WAIT = """
import time
from edge_agent.pipeline import processor

@processor("slow.wait")
def wait(tensors):
    time.sleep(float(tensors["x"][0, 0]))
    return tensors
"""
"""A step that takes as many seconds as its input says."""

_ONNX = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8, "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip


def echo_name(datatype: str) -> str:
    """The model that answers tensors of `datatype` [n, 3] unchanged."""
    return f"echo-{datatype.lower()}"


def values(datatype: str) -> NDArray[Any]:
    """Two rows of three values with the type's limits among them, as tritonclient takes them."""
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype == "BYTES":
        return np.array(
            [[b"a", b"", "에지".encode()], ["ż".encode(), b"x" * 300, b" "]], np.object_
        )
    if datatype == "BF16":
        return np.array([[1.0, -2.5, 3.14], [0.0, 1e30, -1e-30]], ml_dtypes.bfloat16)
    if datatype.startswith("FP"):
        dtype = np.dtype(f"<f{int(datatype[2:]) // 8}")
        limits = np.finfo(dtype)
        return np.array([[limits.min, 0.1, limits.max], [-0.0, limits.tiny, 1 / 3]], dtype)
    dtype = np.dtype(datatype.lower())
    whole = np.iinfo(dtype)
    return np.array([[whole.min, 1, whole.max], [whole.max - 1, 0, 7]], dtype)


def served_plane(directory: Path) -> DataPlane:
    """All models of these tests, loaded from bundles as a device does.

    echo-TYPE: x → y [n, 3] unchanged, version 7.
    pair: a FP32, b INT64 [n, 2] → total FP32, product FP32 [n, 2], first INT64 [n].
    strict: as echo-fp32, but refuses values beyond ±100.
    slow: as echo-fp32, but takes x[0, 0] seconds, though its cost claims 1 ms.
    """
    plane = DataPlane()
    for datatype in DATATYPES:
        _install(plane, directory, _echo(directory, echo_name(datatype), datatype))
    _install(plane, directory, _pair(directory))
    limits = StepSpec(name="check.range", config={"min": -100, "max": 100})
    _install(plane, directory, _echo(directory, "strict", "FP32", steps=(limits,)))
    (directory / "slow").mkdir(parents=True)
    (directory / "slow" / "wait.py").write_text(WAIT)
    slow = _echo(directory, "slow", "FP32", steps=(StepSpec(name="slow.wait"),), code=("wait.py",))
    _install(plane, directory, slow.model_copy(update={"cost": _cost(1000)}))
    return plane


class Loop:
    """An event loop, uvloop as on a device, on a thread of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=20)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Loop]:
        self = cls()
        self._thread.start()
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


def _install(plane: DataPlane, directory: Path, manifest: Manifest) -> None:
    path = directory / manifest.model
    (path / "manifest.json").write_bytes(manifest.encode())
    plane.install(manifest.model, ServedModel.load(path))


def _echo(
    directory: Path,
    name: str,
    datatype: Datatype,
    *,
    steps: tuple[StepSpec, ...] = (),
    code: tuple[str, ...] = (),
) -> Manifest:
    """BF16, which few networks take at their interface, is rounded inside of an FP32 network."""
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    half = datatype == "BF16"
    inside: Datatype = "FP32" if half else datatype
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    if half:
        nodes = [
            helper.make_node("Cast", ["x"], ["rounded"], to=TensorProto.BFLOAT16),
            helper.make_node("Cast", ["rounded"], ["y"], to=TensorProto.FLOAT),
        ]
    shape = ["n", 3]
    _save(
        path / "model.onnx",
        nodes,
        [helper.make_tensor_value_info("x", _ONNX[inside], shape)],
        [helper.make_tensor_value_info("y", _ONNX[inside], shape)],
    )
    return _manifest(
        name,
        inputs=(TensorSpec(name="x", datatype=datatype, shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=(-1, 3)),),
        network=ModelSpec(
            runtime="onnxruntime",
            file="model.onnx",
            inputs=(TensorSpec(name="x", datatype=inside, shape=(-1, 3)),),
            outputs=(TensorSpec(name="y", datatype=inside, shape=(-1, 3)),),
        ),
        pipeline=(*steps, StepSpec(name="model")),
        code=code,
    )


def _pair(directory: Path) -> Manifest:
    path = directory / "pair"
    path.mkdir(parents=True)
    inputs = (
        TensorSpec(name="a", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="b", datatype="INT64", shape=(-1, 2)),
    )
    outputs = (
        TensorSpec(name="total", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="product", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="first", datatype="INT64", shape=(-1,)),
    )
    _save(
        path / "model.onnx",
        [
            helper.make_node("Cast", ["b"], ["whole"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["a", "whole"], ["total"]),
            helper.make_node("Mul", ["a", "whole"], ["product"]),
            helper.make_node("Gather", ["b", "zero"], ["first"], axis=1),
        ],
        [helper.make_tensor_value_info(s.name, _ONNX[s.datatype], ["n", 2]) for s in inputs],
        [
            helper.make_tensor_value_info(s.name, _ONNX[s.datatype], ["n", 2][: len(s.shape)])
            for s in outputs
        ],
        [helper.make_tensor("zero", TensorProto.INT64, [], [0])],
    )
    network = ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=outputs)
    return _manifest(
        "pair", inputs=inputs, outputs=outputs, network=network,
        pipeline=(StepSpec(name="model"),), code=(),
    )  # fmt: skip


def _manifest(name: str, **fields: Any) -> Manifest:
    return Manifest(
        model=name,
        version=7,
        profile="this-machine",
        variant="echo/fp32",
        files=(),
        cost=_cost(20),
        **fields,
    )


def _cost(fixed_us: float) -> CostModel:
    """A claim, so that nothing here depends on what this machine does at the moment."""
    return CostModel(per_item_us=0, fixed_us=fixed_us, max_batch=1)


def _save(path: Path, nodes: Any, inputs: Any, outputs: Any, constants: Any = ()) -> None:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
