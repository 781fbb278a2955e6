"""A real agent that is updated: how long it takes, and how much memory.

The agent is the command that a device runs, enrolled by a claim.  The bundle has a small network
and a large file beside it that no runtime opens, so that the memory is the update's and not the
new network's.  The self-test's process is counted apart: it ends with the test.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from bench.loads.errors import BenchError
from bench.loads.processes import ServerProcess, started
from bench.updates import line
from bench.updates.bundles import PROFILE
from cloud.publish import build_bundle
from edge_agent.pipeline import golden
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec, TensorSpec

MODEL: Final = "bench"
NAME: Final = "bench-agent"
UPDATES: Final = 3

_START_S: Final = 60.0
_UPDATE_S: Final = 300.0
_POLL_S: Final = 0.01
_IDLE_S: Final = 3.0


@dataclass(frozen=True)
class Updated:
    """What updating a running agent took.

    Attributes:
        publish_to_serving_s: from the call to publish until the new version answers, of each
            update; encoding is in it, and `encode_s` of it.
        idle_mib: resident memory of the agent before.
        over_idle_mib: most of it over that while an update ran, its children left out.
        selftest_mib: most of its children.
    """

    bundle_mib: float
    publish_to_serving_s: tuple[float, ...]
    encode_s: tuple[float, ...]
    idle_mib: float
    over_idle_mib: float
    selftest_mib: float


def measure(server: ServerProcess, place: Path, mib: int) -> Updated:
    """Install a bundle with `mib` MiB beside its network, then update it `UPDATES` times.

    Raises:
        BenchError: the agent does not start, or does not serve a version.
    """
    place.mkdir(parents=True)
    ballast = np.random.default_rng(1).integers(0, 256, mib << 20, np.uint8)
    with _agent(server, place) as process:
        _install(server, place, process, 1, ballast)
        time.sleep(_IDLE_S)
        idle = psutil.Process(process.process.pid).memory_info().rss
        watch = _Watch(process.process.pid)
        took, encoded = [], []
        for version in range(2, 2 + UPDATES):
            ballast[:: 100 * version] += 1  # a part of it is new
            with watch:
                release, seconds = _install(server, place, process, version, ballast)
            took.append(seconds)
            encoded.append(release["encode_seconds"])
    return Updated(
        release["length"] / 2**20,
        tuple(took),
        tuple(encoded),
        idle / 2**20,
        (watch.own - idle) / 2**20,
        watch.children / 2**20,
    )


class _Watch:
    """Most memory of a process and of its children, in bytes, while the block runs."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.own = self.children = 0

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_POLL_S):
            with contextlib.suppress(psutil.Error):
                self.own = max(self.own, self._process.memory_info().rss)
                inside = self._process.children(recursive=True)
                self.children = max(self.children, sum(c.memory_info().rss for c in inside))


@contextlib.contextmanager
def _agent(server: ServerProcess, place: Path) -> Iterator[ServerProcess]:
    directory = place / "agent"
    directory.mkdir()
    (directory / "agent.toml").write_text("http_port = 0\nreconnect_first_s = 0.2\n")
    claim = place / "claim.json"
    line.ask(server, "claim", profile=PROFILE, path=str(claim))
    command = [sys.executable, "-m", "edge_agent"]
    enrol = [*command, "enrol", "--claim", str(claim), "--name", NAME, "--dir", str(directory)]
    done = subprocess.run(enrol, capture_output=True, text=True, check=False, timeout=_START_S)
    if done.returncode:
        raise BenchError(f"the agent does not enrol: {done.stderr.strip()[-300:]}")
    with started("agent", [*command, "run", "--dir", str(directory)]) as process:
        process.wait_until((directory / "run" / "agent.json").exists, _START_S)
        yield process


def _install(
    server: ServerProcess, place: Path, process: ServerProcess, version: int, ballast: Any
) -> tuple[dict[str, Any], float]:
    """Publish, assign, and wait until the version answers; the release and the seconds."""
    bundle = place / f"{version}.tar"
    bundle.write_bytes(_bundle(place / str(version), version, ballast.tobytes()))
    release = line.publish(server, bundle, MODEL, version)
    line.ask(server, "assign", device=NAME, target=release["target"])
    about = json.loads((place / "agent" / "run" / "agent.json").read_text())
    process.wait_until(lambda: _ready(about["http_port"], version), _UPDATE_S)
    return release, time.time() - release["started_at"]


def _ready(port: int, version: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", f"/v2/models/{MODEL}/versions/{version}/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _bundle(directory: Path, version: int, ballast: bytes) -> bytes:
    directory.mkdir()
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32) * version, "w")
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        MODEL,
        [helper.make_tensor_value_info("x", kind, ["n", 4])],
        [helper.make_tensor_value_info("y", kind, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, directory / "model.onnx")
    (directory / "ballast.dat").write_bytes(ballast)
    x = np.eye(4, dtype=np.float32)
    golden.write(directory / "golden.npz", {"x": x}, {"y": x * version})
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
    manifest = Manifest(
        model=MODEL, version=version, profile=PROFILE, variant="bench/fp32",
        inputs=inputs, outputs=outputs, pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=outputs),
        golden="golden.npz", files=(),
    )  # fmt: skip
    return build_bundle(directory, manifest)
