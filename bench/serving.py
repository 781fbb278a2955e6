"""Serving a tiny network: the agent's server beside a FastAPI route, loaded by wrk in one run.

Both answer the same JSON requests of a 64→10 network with onnxruntime in one process; the agent
validates, counts, and samples as it does on a device.  CPU per request is the figure to trust: the
rate depends on how many cores wrk leaves.

    python -m bench.serving [--seconds 5] [--connections 8]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from cloud.publish import hash_files
from edge_agent.pipeline import golden
from edge_agent.wire.manifest import CostModel, Manifest, ModelSpec, StepSpec, TensorSpec

FEATURES, CLASSES = 64, 10
START_TIMEOUT_S = 60.0
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Figures:
    """One server under one kind of request."""

    rps: float
    cpu_us_per_request: float
    p50_us: float
    p99_us: float
    pss_mb: float


def write_bundle(directory: Path) -> None:
    """An unpacked bundle of one dense layer with seeded weights."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    float32 = TensorProto.FLOAT
    network = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["logits"])],
            "tiny",
            [helper.make_tensor_value_info("x", float32, ["n", FEATURES])],
            [helper.make_tensor_value_info("logits", float32, ["n", CLASSES])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(network, directory / "model.onnx")
    x = rng.standard_normal((1, FEATURES)).astype(np.float32)
    golden.write(directory / "golden.npz", {"x": x}, {"logits": x @ weights})
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, FEATURES)),)
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, CLASSES)),)
    manifest = Manifest(
        model="tiny",
        version=1,
        profile="this-machine",
        variant="tiny/fp32",
        inputs=inputs,
        outputs=outputs,
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=outputs),
        golden="golden.npz",
        cost=CostModel(per_item_us=10, fixed_us=10),
        files=hash_files(directory),
    )
    (directory / "manifest.json").write_bytes(manifest.encode())


class PeerTensor(BaseModel):
    """A tensor as the peer validates it."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class PeerRequest(BaseModel):
    inputs: list[PeerTensor]


# ── the servers, each in a process of its own ────────────────────────────────────────────────────


def serve_skerry(directory: str, port: int) -> None:
    """The agent's server with its sampler, on uvloop."""
    import uvloop

    from edge_agent.link.outbox import Outbox
    from edge_agent.sampling import Sampler
    from edge_agent.serve import DataPlane, ServedModel, Server

    async def main() -> None:
        journal = Outbox(Path(directory) / "outbox.db", 1 << 20)
        plane = DataPlane(Sampler(journal, key=b"bench" * 8).observe)
        plane.install("tiny", ServedModel.load(Path(directory)))
        await Server(plane, host="127.0.0.1", port=port).start()
        await asyncio.Event().wait()

    uvloop.run(main())


def serve_fastapi(directory: str, port: int) -> None:
    """What a team writes in an afternoon: a FastAPI route around onnxruntime, on uvicorn."""
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(Path(directory) / "model.onnx"), options)
    app = FastAPI()

    @app.post("/v2/models/tiny/infer")
    async def infer(request: PeerRequest) -> dict[str, object]:
        tensor = request.inputs[0]
        x = np.array(tensor.data, np.float32).reshape(tensor.shape)
        [logits] = session.run(None, {"x": x})
        shape = list(logits.shape)
        output = {"name": "logits", "shape": shape, "datatype": "FP32"}
        return {"model_name": "tiny", "outputs": [{**output, "data": logits.ravel().tolist()}]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", loop="uvloop")


# ── load ─────────────────────────────────────────────────────────────────────────────────────────


def lua_script(path: Path, kind: str) -> Path:
    """A wrk script that posts one request, as JSON or with the binary tensor extension."""
    x = np.linspace(-1, 1, FEATURES, dtype=np.float32)
    tensor: dict[str, object] = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32"}
    if kind == "json":
        head = 'wrk.headers["Content-Type"] = "application/json"\n'
        body = json.dumps({"inputs": [{**tensor, "data": x.tolist()}]}).encode()
    else:
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        head = f'wrk.headers["Inference-Header-Content-Length"] = "{len(text)}"\n'
        body = text.encode() + x.tobytes()
    escaped = "".join(f"\\{byte:03d}" for byte in body)
    path.write_text(f'wrk.method = "POST"\n{head}wrk.body = "{escaped}"\n')
    return path


def load(port: int, script: Path, seconds: float, connections: int) -> tuple[float, float, float]:
    """Run wrk; returns requests per second, p50 and p99 in microseconds."""
    done = subprocess.run(
        [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script),
            f"http://127.0.0.1:{port}/v2/models/tiny/infer",
        ],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    if "Non-2xx" in done.stdout:
        raise SystemExit(f"bench.serving: the server refused requests:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if rate is None:
        raise SystemExit(f"bench.serving: cannot read wrk's answer:\n{done.stdout}")
    return float(rate[1]), _latency_us(done.stdout, "50%"), _latency_us(done.stdout, "99%")


def _latency_us(text: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", text)
    if found is None:
        raise SystemExit(f"bench.serving: wrk gives no {percentile} latency:\n{text}")
    return float(found[1]) * {"us": 1.0, "ms": 1e3, "s": 1e6}[found[2]]


def measure(
    serve: Callable[[str, int], None],
    directory: Path,
    kinds: tuple[str, ...],
    seconds: float,
    connections: int,
) -> dict[str, Figures]:
    """Start a server, load it with each kind of request, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(str(directory), port), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if not process.is_alive() or time.monotonic() > deadline:
                raise SystemExit(f"bench.serving: {serve.__name__} does not start")
            time.sleep(0.05)
        watched = psutil.Process(process.pid)
        found = {}
        for kind in kinds:
            script = lua_script(directory / f"{kind}.lua", kind)
            load(port, script, WARM_UP_S, connections)
            before = watched.cpu_times()
            rps, p50, p99 = load(port, script, seconds, connections)
            after = watched.cpu_times()
            cpu_s = after.user + after.system - before.user - before.system
            found[kind] = Figures(
                rps=rps,
                cpu_us_per_request=cpu_s / (rps * seconds) * 1e6,
                p50_us=p50,
                p99_us=p99,
                pss_mb=watched.memory_full_info().pss / 2**20,
            )
        return found
    finally:
        process.terminate()
        process.join(10)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--connections", type=int, default=8)
    given = arguments.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("bench.serving: wrk is missing; install it ('apt-get install wrk')")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_bundle(directory)
        run = (directory, given.seconds, given.connections)
        agent = measure(serve_skerry, run[0], ("binary", "json"), *run[1:])
        peer = measure(serve_fastapi, run[0], ("json",), *run[1:])
    rows = {f"agent {kind}": figures for kind, figures in agent.items()}
    rows |= {f"FastAPI {kind}": figures for kind, figures in peer.items()}
    table = Table(title=f"a 64→10 network, {given.connections} connections, {given.seconds:g} s")
    for name in ("server", "requests/s", "CPU µs/request", "p50 µs", "p99 µs", "PSS MiB"):
        table.add_column(name, justify="left" if name == "server" else "right")
    for name, f in rows.items():
        table.add_row(
            name, f"{f.rps:,.0f}", f"{f.cpu_us_per_request:.0f}", f"{f.p50_us:.0f}",
            f"{f.p99_us:.0f}", f"{f.pss_mb:.0f}",
        )  # fmt: skip
    Console().print(table)
    figures: dict[str, object] = {
        name.replace(" ", "_").lower(): {key: round(value, 1) for key, value in vars(f).items()}
        for name, f in rows.items()
    }
    figures["json_cpu_ratio_to_fastapi"] = round(
        peer["json"].cpu_us_per_request / agent["json"].cpu_us_per_request, 2
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
