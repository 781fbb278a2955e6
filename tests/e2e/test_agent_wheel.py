"""The agent's wheel, installed alone: light, complete, and able to serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cloud.publish import hash_files
from edge_agent.pipeline import golden
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec, TensorSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
TOO_HEAVY = ("torch", "fastapi", "sqlalchemy", "starlette", "uvicorn", "onnx", "pandas", "nicegui")


@pytest.fixture(scope="module")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an empty environment into which the agent's wheel alone was installed."""
    directory = tmp_path_factory.mktemp("device")
    wheels = directory / "wheels"
    subprocess.run(
        [
            sys.executable, "-m", "build", "--wheel", "--no-isolation",
            "--outdir", str(wheels), str(ROOT / "edge_agent"),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [wheel] = wheels.glob("skerry_agent-*.whl")
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv" / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)],
        check=True, timeout=400, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    return python


def run(python: Path, code: str, *arguments: str) -> str:
    """Run `code` with nothing of the checkout on the path."""
    done = subprocess.run(
        [str(python), "-I", "-c", code, *arguments],
        cwd=python.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports(device_python: Path) -> None:
    code = """
import importlib, pkgutil, edge_agent
names = [m.name for m in pkgutil.walk_packages(edge_agent.__path__, "edge_agent.")]
for name in names:
    importlib.import_module(name)
print(len(names), edge_agent.__file__)
"""
    count, where = run(device_python, code).split()
    sources = [p for p in (ROOT / "edge_agent").rglob("*.py") if "__pycache__" not in p.parts]
    assert int(count) == len(sources) - 1  # the package itself is not walked
    assert str(device_python.parent.parent) in where


def test_nothing_heavy_comes_along(device_python: Path) -> None:
    code = "import importlib.metadata as m; print(*[d.name.lower() for d in m.distributions()])"
    installed = run(device_python, code).split()
    assert "skerry-agent" in installed
    assert not set(TOO_HEAVY) & set(installed)


def test_it_serves_a_bundle(device_python: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path)
    code = """
import asyncio, http.client, json, sys, threading
from pathlib import Path
from edge_agent.serve import DataPlane, ServedModel, Server

async def main():
    plane = DataPlane(lambda prediction: None)
    plane.install("double", ServedModel.load(Path(sys.argv[1])))
    server = Server(plane, host="127.0.0.1", port=0)
    await server.start()
    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2]}]}
        connection.request("POST", "/v2/models/double/infer", json.dumps(body))
        print(connection.getresponse().read().decode())
    await asyncio.to_thread(ask)
    await server.stop()

asyncio.run(main())
"""
    reply = json.loads(run(device_python, code, str(tmp_path)))
    assert reply["model_name"] == "double"
    assert reply["outputs"][0]["data"] == [3.0, -4.0]


def write_bundle(directory: Path) -> None:
    """An unpacked bundle of a network that doubles its input."""
    float32 = TensorProto.FLOAT
    network = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "x"], ["y"])],
            "double",
            [helper.make_tensor_value_info("x", float32, ["n", 2])],
            [helper.make_tensor_value_info("y", float32, ["n", 2])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(network, directory / "model.onnx")
    x = np.array([[1, 2]], np.float32)
    golden.write(directory / "golden.npz", {"x": x}, {"y": x * 2})
    spec = (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)
    answer = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),)
    manifest = Manifest(
        model="double",
        version=1,
        profile="this-machine",
        variant="double/fp32",
        inputs=spec,
        outputs=answer,
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=spec, outputs=answer),
        golden="golden.npz",
        files=hash_files(directory),
    )
    (directory / "manifest.json").write_bytes(manifest.encode())
