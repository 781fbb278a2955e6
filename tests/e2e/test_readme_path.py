"""The README's ten-minute path, typed with the installed commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

COMMANDS = Path(sys.executable).parent
NAME = "mine"


@dataclass(frozen=True)
class Shell:
    """A person's terminal in a directory of their own."""

    directory: Path
    control_plane: Path

    def type(self, line: str) -> str:
        """Run one line of `skerry …` or `skerry-agent …`; what it printed."""
        command, *arguments = line.split()
        done = subprocess.run(
            [str(COMMANDS / command), *arguments],
            cwd=self.directory, capture_output=True, text=True, timeout=300, check=False,
            env={
                **os.environ, "SKERRY_DIRECTORY": str(self.control_plane), "COLUMNS": "200",
                "PYTHONPATH": str(ROOT),
            },
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """With a copy of the example, made smaller so that it is built in seconds."""
    directory = tmp_path_factory.mktemp("own-model")
    shutil.copytree(ROOT / "examples" / "digits", directory / NAME)
    project = directory / NAME / "skerry.yaml"
    text = project.read_text()
    for old, new in (
        ("name: digits\nmodel: digits\n", f"name: {NAME}\nmodel: {NAME}\n"),
        ("    large: {channels: 32, hidden: 128}\n", ""),
        ("recipes: [fp32, ort-int8, openvino-int8]", "recipes: [fp32, ort-int8]"),
    ):
        assert old in text
        text = text.replace(old, new)
    head, found, tail = text.partition("  generic-x86-64:")
    assert found
    project.write_text(head + tail[tail.index("\nsampling:") :])
    return Shell(directory, demo.directory / "cloud")


@pytest.fixture
def agent(shell: Shell) -> Iterator[Callable[[Path], None]]:
    """Starts `skerry-agent run` and ends it."""
    running: list[subprocess.Popen[bytes]] = []

    def start(directory: Path) -> None:
        running.append(
            subprocess.Popen(
                [str(COMMANDS / "skerry-agent"), "run", "--dir", str(directory)],
                cwd=shell.directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )  # fmt: skip

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


def test_a_copied_project_reaches_a_device_by_the_readmes_lines(
    shell: Shell, agent: Callable[[Path], None]
) -> None:
    assert NAME in shell.type(f"skerry check {NAME}")
    shell.type(f"skerry apply {NAME}")
    shell.type(f"skerry build {NAME}")
    assert re.search(r"small/(fp32|ort-int8)", shell.type(f"skerry models show {NAME}:1"))

    jobs = json.loads(shell.type("skerry jobs list --json"))
    job = next(job["id"] for job in jobs if job["project"] == NAME)
    shell.type(f"skerry report {job} -o report.html")
    assert "<svg" in (shell.directory / "report.html").read_text()

    shell.type(f"skerry models approve {NAME}:1")
    shell.type(f"skerry models publish {NAME}:1")
    shell.type("skerry claims create --profile this-machine -o claim.json")
    shell.type("skerry-agent enrol --dir device --claim claim.json")
    device = shell.directory / "device"
    (device / "agent.toml").write_text("http_port = 0\n")
    agent(device)

    answer = answered(device, f"/v2/models/{NAME}")
    assert answer["name"] == NAME


def answered(device: Path, path: str, timeout_s: float = 60.0) -> dict[str, object]:
    """What the device answers on localhost, once it does."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            port = json.loads((device / "run" / "agent.json").read_text())["http_port"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                found: dict[str, object] = json.loads(reply.read())
                return found
        except (OSError, ValueError):
            assert time.monotonic() < deadline, f"{path} was not answered"
            time.sleep(0.2)
