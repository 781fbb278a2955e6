"""A control plane's directory, a worker process on it, and a project that trains in a moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cloud.blobs import Blobs
from cloud.db.engine import open_sessions
from cloud.db.tables import Job, Project
from cloud.jobs.client import JobQueue
from cloud.jobs.records import JobRecords
from cloud.project import load_project, pack_project
from cloud.settings import Settings

T = TypeVar("T")

WORKER = """
import logging, sys
from pathlib import Path
from cloud.jobs.worker import run_worker
from cloud.settings import Settings
logging.basicConfig(level=logging.INFO)
run_worker(Settings(directory=Path(sys.argv[1])))
"""

TINY_YAML = """\
name: tiny
model: tiny
labels: ["left", "right"]
dataset: {load: "data:load", eval_share: 0.3, golden_share: 0.3}
family: {build: "family:build", members: {only: {width: 4}}}
training: {epochs: 20, learning_rate: 0.05}
code: [data.py, family.py]
inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]
outputs:
  - {name: scores, datatype: FP32, shape: [-1, 2]}
  - {name: label, datatype: INT64, shape: [-1]}
pipeline: [model, classify]
recipes: [fp32]
measure: {quick: true}
profiles: {this-machine: {latency_ms: 100, percentile: 0.9}}
"""

TINY_DATA = """\
from pathlib import Path
import numpy as np

def load():
    with open(COUNT, "a") as file:
        file.write("load\\n")
    x = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    return {"x": x}, np.where(x[:, 0] < 0, "left", "right")
"""

TINY_FAMILY = """\
import time
from torch import nn

def build(width):
    with open(COUNT, "a") as file:
        file.write("build\\n")
    time.sleep(SLEEP)
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
"""


class ControlPlane:
    """What a test needs of a control plane: projects, jobs, a worker to kill."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(directory=directory)
        self.sessions = open_sessions(self.settings.effective_database_url)
        self.blobs = Blobs(self.settings.effective_blob_url)
        self.queue = JobQueue(self.sessions)
        self.records = JobRecords(self.sessions)
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        with (self.directory / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(self.directory)], stdout=log, stderr=log
            )

    def stop_worker(self, signum: int = signal.SIGTERM) -> int:
        assert self.worker is not None
        self.worker.send_signal(signum)
        return self.worker.wait(15)

    def apply(self, project_dir: Path) -> None:
        project = load_project(project_dir)
        row = Project(
            name=project.name,
            code_sha=self.blobs.put(pack_project(project_dir)),
            spec=project.model_dump(mode="json"),
            applied_at=time.time(),
        )
        with self.sessions.begin() as session:
            session.merge(row)

    def job(self, job_id: str) -> Job:
        job = self.records.get(job_id)
        assert job is not None
        return job

    def run(self, kind: str, project: str, timeout_s: float = 110.0) -> Job:
        """Ask for a job and wait for its end."""
        return self.finish(self.queue.enqueue(kind, project), timeout_s)

    def finish(self, job_id: str, timeout_s: float = 110.0) -> Job:
        def ended() -> Job | None:
            job = self.job(job_id)
            return job if job.state not in ("queued", "running") else None

        return wait_for(ended, timeout_s)

    @staticmethod
    def wait_for(probe: Callable[[], T | None], timeout_s: float = 60.0) -> T:
        return wait_for(probe, timeout_s)

    @staticmethod
    def alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True


class Tiny:
    """A project of two classes; it counts how often its functions were called."""

    def __init__(self, directory: Path, name: str = "tiny") -> None:
        self.directory = directory
        self.name = name
        directory.mkdir(parents=True)
        self.count = directory / "count.txt"
        self.write()

    def write(
        self, *, yaml: tuple[str, str] = ("", ""), data: str = TINY_DATA, sleep: float = 0
    ) -> None:
        text = TINY_YAML.replace(
            "name: tiny\nmodel: tiny", f"name: {self.name}\nmodel: {self.name}"
        )
        (self.directory / "skerry.yaml").write_text(text.replace(*yaml) if yaml[0] else text)
        count = json.dumps(str(self.count))
        (self.directory / "data.py").write_text(data.replace("COUNT", count))
        (self.directory / "family.py").write_text(
            TINY_FAMILY.replace("COUNT", count).replace("SLEEP", str(sleep))
        )

    def calls(self) -> list[str]:
        return self.count.read_text().split() if self.count.exists() else []


def wait_for(probe: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    """Poll until `probe` gives something true."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane and its worker for all tests of a module."""
    plane = ControlPlane(tmp_path_factory.mktemp("plane") / "cp")
    plane.start_worker()
    yield plane
    assert plane.worker is not None
    if plane.worker.poll() is None:
        plane.stop_worker()


@pytest.fixture
def fresh_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane whose worker the test starts and stops."""
    plane = ControlPlane(tmp_path / "cp")
    yield plane
    if plane.worker is not None and plane.worker.poll() is None:
        plane.stop_worker()


@pytest.fixture
def tiny(tmp_path: Path, request: pytest.FixtureRequest) -> Tiny:
    """A project named after the test."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    return Tiny(tmp_path / "tiny", name)
