"""A control plane around real agent processes: API, broker, delivery, ingest, repositories."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from cloud.api.app import create_api
from cloud.api.context import Context
from cloud.broker.connection import Connection
from cloud.broker.mosquitto import Mosquitto
from cloud.db.tables import Release
from cloud.delivery import Delivery
from cloud.ingest import Ingest
from cloud.publish import build_bundle, director_target, publish_release
from cloud.services import Services, initialise, open_services
from cloud.settings import Settings
from edge_agent.commands import admin
from edge_agent.pipeline import golden
from edge_agent.wire import topics
from edge_agent.wire.manifest import Limits, Manifest, ModelSpec, SamplingSpec, StepSpec, TensorSpec
from edge_agent.wire.messages import ClaimFile, Desired, DesiredModel
from fleet.client.client import Client
from fleet.client.schemas import ClaimIn

PROFILE = "this-machine"
MODEL = "tiny"


def until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in time: {what}"
        time.sleep(0.05)


@dataclass
class Plane:
    """The running control plane."""

    services: Services
    broker: Mosquitto
    connection: Connection
    client: Client
    generations: dict[str, int] = field(default_factory=dict)

    def claim(self, path: Path) -> Path:
        [claim] = self.client.create_claims(ClaimIn(profile=PROFILE))
        path.write_text(ClaimFile.model_validate(claim.model_dump()).model_dump_json())
        return path

    def release(
        self,
        version: int,
        tmp_path: Path,
        model: str = MODEL,
        code: str = "",
        limits: Limits | None = None,
    ) -> Release:
        directory = tmp_path / f"bundle-{model}-{version}"
        bundle = self.services.blobs.put(tiny_bundle(directory, version, model, code, limits))
        with self.services.sessions.begin() as session:
            return publish_release(
                session, self.services.blobs, self.services.image_repository,
                model, version, PROFILE, bundle,
            )  # fmt: skip

    def assign(
        self,
        device: str,
        *releases: Release,
        group: str | None = None,
        probation_s: float = 0.3,
    ) -> None:
        """Assign these releases, one a model, and no others; all or none in a group."""
        generation = self.generations[device] = self.generations.get(device, 0) + 1
        targets = [
            director_target(release, generation=generation, probation_s=probation_s, group=group)
            for release in releases
        ]
        self.services.director.assign(device, targets)
        desired = Desired(
            version=generation,
            models={
                release.model: DesiredModel(
                    target=release.target, version=release.version, counter=release.counter,
                    generation=generation, probation_s=probation_s, group=group,
                )
                for release in releases
            },
        )  # fmt: skip
        self.connection.publish(topics.desired(device), desired.encode(), retain=True)


@dataclass
class Process:
    """One agent process in its directory."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()
    """Command that the agent is started through, such as one that sets its clock."""
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge_agent", *arguments, "--dir", str(self.directory)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def start(self) -> None:
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    sys.executable, "-m", "edge_agent", "run", "--dir", str(self.directory),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        running = self.process
        until(
            lambda: running.poll() is not None or (self.directory / "run" / "agent.json").exists(),
            what="the agent's start",
        )
        assert running.poll() is None, self.log()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        path = self.directory / "agent.log"
        return path.read_text() if path.exists() else ""

    def about(self) -> dict[str, Any]:
        """Where the running agent says it is."""
        about: dict[str, Any] = json.loads((self.directory / "run" / "agent.json").read_text())
        return about

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        unix: Path | str | None = None,
    ) -> tuple[int, Any]:
        """Ask over TCP, or over the Unix socket at `unix`."""
        port = self.about()["http_port"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        if unix is not None:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(5)
            connection.sock.connect(str(unix))
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, headers or {})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, json.loads(data) if data else None

    def ready(self, version: int, model: str = MODEL) -> bool:
        try:
            return self.call("GET", f"/v2/models/{model}/versions/{version}/ready")[0] == 200
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def predict(self, prediction_id: str, x: list[float]) -> int:
        body = {
            "id": prediction_id,
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": x}],
        }
        status, answer = self.call("POST", f"/v2/models/{MODEL}/infer", body)
        assert status == 200, answer
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return int(outputs["label"][0])

    def status(self) -> dict[str, Any]:
        """The running agent's own view, which the command `status` prints too."""
        return admin.status(self.directory)


def tiny_bundle(
    directory: Path,
    version: int,
    model: str = MODEL,
    code: str = "",
    limits: Limits | None = None,
) -> bytes:
    """A classifier of four numbers: the largest wins.

    Args:
        code: source of a step file, executed whenever the bundle is loaded.
    """
    directory.mkdir()
    kind = TensorProto.FLOAT
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32) * (1 + version), "w")
    network = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["logits"])],
            model,
            [helper.make_tensor_value_info("x", kind, ["n", 4])],
            [helper.make_tensor_value_info("logits", kind, ["n", 4])],
            [weights],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(network, directory / "model.onnx")
    x = np.array([[0, 0, 1, 0]], np.float32)
    scores = np.exp(x * (1 + version)) / np.exp(x * (1 + version)).sum()
    golden.write(
        directory / "golden.npz",
        {"x": x},
        {"scores": scores.astype(np.float32), "label": np.array([2])},
    )
    if code:
        (directory / "steps.py").write_text(code)
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    logits = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 4)),)
    manifest = Manifest(
        model=model, version=version, profile=PROFILE, variant="tiny/fp32",
        inputs=inputs,
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=(-1, 4)),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        ),
        labels=("a", "b", "c", "d"),
        pipeline=(StepSpec(name="model"), StepSpec(name="classify")),
        network=ModelSpec(
            runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=logits
        ),
        code=("steps.py",) if code else (),
        golden="golden.npz",
        limits=limits or Limits(),
        sampling=SamplingSpec(uniform_rate=1.0, max_bytes_per_minute=50_000_000),
        files=(),
    )  # fmt: skip
    return build_bundle(directory, manifest)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, free_ports) -> Iterator[Plane]:
    api_port, broker_port = free_ports(2)
    settings = Settings(
        directory=tmp_path_factory.mktemp("plane"), api_port=api_port, broker_port=broker_port
    )
    initialise(settings)
    services = open_services(settings)
    app = create_api(Context.of(services))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=api_port, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    broker = Mosquitto.for_authority(
        settings.directory / "broker", services.authority, host="127.0.0.1", port=broker_port
    )
    broker.start()
    connection = Connection(
        host="127.0.0.1", port=broker_port, client_id="plane",
        files=services.authority.client_files(),
    )  # fmt: skip
    delivery = Delivery(
        connection,
        services.blobs,
        services.image_repository.directory,
        services.director.directory,
        services.sessions,
    )
    Ingest(services.sessions, services.blobs, connection).start()
    delivery.start()
    connection.start(10)
    token = (settings.directory / "tokens" / "admin").read_text().strip()
    with Client(settings.api_url, token) as client:
        yield Plane(services, broker, connection, client)
    connection.stop()
    delivery.stop()
    broker.stop()
    server.should_exit = True
    thread.join(10)
    services.sessions.kw["bind"].dispose()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Makes agents with a directory each; ends what is left of them."""
    made: list[Process] = []

    def make(name: str) -> Process:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "agent.toml").write_text(
            "http_port = 0\nmetrics_interval_s = 0.5\nreconnect_first_s = 0.2\n"
            "reconnect_max_s = 0.5\n"
        )
        made.append(Process(directory))
        return made[-1]

    yield make
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.kill()
