"""`skerry up`: the process tree, its lock, and how single processes are stopped and started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.supervisor import ask, holder
from fleet.client.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, int]]:
    """Directory, API port and process id of a running `skerry up`."""
    directory = tmp_path_factory.mktemp("up") / "cp"
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
            "--api-port", str(port), "--broker-port", str(free_port()),
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(lambda: (directory / "run" / "api.ready").exists(), 90)
    yield directory, port, process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert holder(directory) is None


def alive(directory: Path) -> dict[str, bool]:
    return {str(row["name"]): bool(row["alive"]) for row in ask(directory, "list")}


def test_every_process_runs(plane: tuple[Path, int, int]) -> None:
    directory, _, _ = plane
    assert alive(directory) == dict.fromkeys(
        ("broker", "api", "ingest", "delivery", "orchestrator", "worker"), True
    )


def test_secrets_are_for_the_owner_alone(plane: tuple[Path, int, int]) -> None:
    directory, _, _ = plane
    secrets = [directory / "passphrase", *(directory / "tokens").iterdir()]
    secrets += (directory / "keys").glob("*.pem")
    assert len(secrets) > 10
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_control_plane_on_the_directory_is_refused(plane: tuple[Path, int, int]) -> None:
    directory, _, pid = plane
    done = subprocess.run(
        [
            sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
            "--api-port", str(free_port()), "--broker-port", str(free_port()),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"process {pid}" in done.stderr
    assert "skerry down" in done.stderr


def test_a_process_that_is_killed_comes_back(plane: tuple[Path, int, int]) -> None:
    directory, _, _ = plane
    [pid] = [row["pid"] for row in ask(directory, "list") if row["name"] == "delivery"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        [row] = [row for row in ask(directory, "list") if row["name"] == "delivery"]
        return bool(row["alive"]) and row["pid"] != pid

    eventually(back)


def test_the_broker_can_be_stopped_and_started(plane: tuple[Path, int, int]) -> None:
    directory, port, _ = plane
    token = (directory / "tokens" / "admin").read_text().strip()
    with Client(f"http://127.0.0.1:{port}", token) as api:
        eventually(lambda: api.overview().broker_connected)
        ask(directory, "stop", "broker")
        assert not alive(directory)["broker"]
        eventually(lambda: not api.overview().broker_connected)
        ask(directory, "start", "broker")
        eventually(lambda: api.overview().broker_connected)
