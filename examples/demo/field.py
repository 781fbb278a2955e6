"""The field of the digits demo: real agent processes, and an application that calls them.

Nothing here is part of the product: it is what a user would have around it.  Devices are
`skerry-agent` processes in directories of their own; the application speaks the Open Inference
Protocol to `localhost` with the standard library alone.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy import ndimage

T = TypeVar("T")

POLL_S = 0.1
IDLE_S = 1.5


class DidNotHold(Exception):
    """A step of the demo did not hold; its text is what failed."""


def require(condition: object, what_failed: str) -> None:
    if not condition:
        raise DidNotHold(what_failed)


def wait_for(what: str, probe: Callable[[], T | None], timeout_s: float) -> T:
    """Poll `probe` until it answers something true.

    Raises:
        DidNotHold: it did not within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        require(time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def free_port() -> int:
    """A TCP port on loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rotate(images: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Rotate images [n, 8, 8] about their centre, keeping the range 0..16."""
    turned = ndimage.rotate(images, degrees, axes=(2, 1), reshape=False, order=1)
    clipped: NDArray[np.float32] = np.clip(turned, 0.0, 16.0).astype(np.float32)
    return clipped


@dataclass
class Answer:
    """What a device answered for one image."""

    prediction_id: str
    label: int
    scores: NDArray[np.float32]


@dataclass
class FieldDevice:
    """One agent process and its directory."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def configure(self, **settings: object) -> None:
        """Write agent.toml."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        (self.directory / "agent.toml").write_text("\n".join(lines) + "\n")

    def enrol(self, claim: Path) -> None:
        done = subprocess.run(
            [
                sys.executable, "-m", "edge_agent", "enrol", "--dir", str(self.directory),
                "--claim", str(claim), "--name", self.name,
            ],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        require(done.returncode == 0, f"{self.name} did not enrol: {done.stderr.strip()}")

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", "--dir", str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    # ── what an application on the device does ───────────────────────────────────────────────────

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads((self.directory / "run" / "agent.json").read_text())
        return about

    def _call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
        if self.connection is None:
            port = self._about()["http_port"]
            self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        data = response.read()
        require(
            response.status == 200,
            f"{self.name}: {method} {path}: {response.status} {data[:200]!r}",
        )
        return response, data

    def predict(self, image: NDArray[np.float32]) -> Answer:
        """POST one image [8, 8] with the binary tensor extension, as a fast client would."""
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image", "shape": [1, 8, 8], "datatype": "FP32",
                        "parameters": {"binary_data_size": image.nbytes},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()  # fmt: skip
        response, data = self._call(
            "POST", "/v2/models/digits/infer",
            head + np.ascontiguousarray(image, dtype="<f4").tobytes(),
            {"Inference-Header-Content-Length": str(len(head))},
        )  # fmt: skip
        head_length = int(response.getheader("Inference-Header-Content-Length"))
        reply = json.loads(data[:head_length])
        outputs: dict[str, NDArray[Any]] = {}
        at = head_length
        for tensor in reply["outputs"]:
            size = tensor["parameters"]["binary_data_size"]
            dtype = {"FP32": "<f4", "INT64": "<i8"}[tensor["datatype"]]
            outputs[tensor["name"]] = np.frombuffer(data[at : at + size], dtype)
            at += size
        return Answer(reply["id"], int(outputs["label"][0]), outputs["scores"])

    def predict_json(self, image: NDArray[np.float32]) -> int:
        """POST one image as plain JSON, as `curl` would; returns the label."""
        body = {
            "inputs": [
                {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [image.tolist()]}
            ]
        }
        _, data = self._call("POST", "/v2/models/digits/infer", json.dumps(body).encode(), {})
        outputs = {tensor["name"]: tensor for tensor in json.loads(data)["outputs"]}
        return int(outputs["label"]["data"][0])

    def correct(self, prediction_id: str, label: int) -> None:
        """Tell the device what the right answer was."""
        body = json.dumps({"id": prediction_id, "label": str(label)}).encode()
        self._call("POST", "/v2/models/digits/feedback", body, {})

    def status(self) -> dict[str, Any]:
        """The agent's own view, over its Unix socket."""
        with socket.socket(socket.AF_UNIX) as unix:
            unix.settimeout(5)
            unix.connect(self._about()["unix_socket"])
            unix.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            data = b""
            while part := unix.recv(65536):
                data += part
        status: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])
        return status

    def weigh(self) -> tuple[float, float]:
        """Memory (PSS, MiB) of the agent, and its CPU over `IDLE_S` idle seconds, in per cent."""
        agent = psutil.Process(int(self._about()["pid"]))
        before = agent.cpu_times()
        time.sleep(IDLE_S)
        after = agent.cpu_times()
        busy_s = after.user + after.system - before.user - before.system
        return agent.memory_full_info().pss / 2**20, max(0.0, 100.0 * busy_s / IDLE_S)

    def cut_off(self) -> bool:
        """Whether the agent has noticed that there is no broker."""
        return not self.status()["connected"]

    def serving(self) -> bool:
        """Whether it answers predictions."""
        try:
            port = self._about()["http_port"]
            probe = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            probe.request("GET", "/v2/models/digits/ready")
            return probe.getresponse().status == 200
        except (OSError, ValueError, KeyError):
            return False


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that has a session of its own, politely first."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
