"""`skerry up`: the process tree, its lock, and how single processes are stopped and started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.errors import UserError
from cloud.supervisor import ask, holder
from fleet.client.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)


def start(directory: Path, api_port: int, broker_port: int) -> subprocess.Popen[bytes]:
    """`skerry up`, once its API answers."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
            "--api-port", str(api_port), "--broker-port", str(broker_port),
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ready() -> bool:
        assert process.poll() is None, "skerry up ended"
        about = directory / "control-plane.json"
        mine = about.exists() and json.loads(about.read_text())["pid"] == process.pid
        return mine and (directory / "run" / "api.ready").exists()

    eventually(ready, 90)
    return process


@pytest.fixture(scope="module")
def ports(free_ports: Callable[[int], list[int]]) -> list[int]:
    """Of the API and of the broker."""
    return free_ports(2)


@pytest.fixture(scope="module")
def plane(
    tmp_path_factory: pytest.TempPathFactory, ports: list[int]
) -> Iterator[tuple[Path, int, int]]:
    """Directory, API port and process id of a running `skerry up`."""
    directory = tmp_path_factory.mktemp("up") / "cp"
    process = start(directory, *ports)
    yield directory, ports[0], process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert holder(directory) is None


def alive(directory: Path) -> dict[str, bool]:
    return {str(row["name"]): bool(row["alive"]) for row in ask(directory, "list")}


def test_every_process_runs(plane: tuple[Path, int, int]) -> None:
    directory, _, _ = plane
    assert alive(directory) == dict.fromkeys(
        ("broker", "api", "ingest", "delivery", "publisher", "orchestrator", "worker"), True
    )


def test_secrets_are_for_the_owner_alone(plane: tuple[Path, int, int]) -> None:
    directory, _, _ = plane
    secrets = [directory / "passphrase", *(directory / "tokens").iterdir()]
    secrets += (directory / "keys").glob("*.pem")
    assert len(secrets) > 10
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_control_plane_on_the_directory_is_refused(
    plane: tuple[Path, int, int], free_ports: Callable[[int], list[int]]
) -> None:
    directory, _, pid = plane
    api_port, broker_port = free_ports(2)
    done = subprocess.run(
        [
            sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
            "--api-port", str(api_port), "--broker-port", str(broker_port),
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


def test_a_broker_that_cannot_start_leaves_the_rest_running_and_is_tried_again(
    plane: tuple[Path, int, int], ports: list[int]
) -> None:
    directory, _, _ = plane
    ask(directory, "stop", "broker")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", ports[1]))
        other.listen()
        with pytest.raises(UserError, match=f"port {ports[1]} for the broker is in use"):
            ask(directory, "start", "broker")
        assert alive(directory) == {name: name != "broker" for name in alive(directory)}
    eventually(lambda: alive(directory)["broker"])


def test_an_unknown_verb_is_refused_and_changes_nothing(plane: tuple[Path, int, int]) -> None:
    directory, _, _ = plane
    with pytest.raises(UserError, match="cannot explode 'broker'"):
        ask(directory, "explode", "broker")
    assert alive(directory)["broker"]


def test_after_a_kill_it_starts_again_at_once_on_the_same_ports(
    tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    both = free_ports(2)
    process = start(tmp_path / "cp", *both)
    process.kill()
    process.wait()
    assert holder(tmp_path / "cp") is None
    again = start(tmp_path / "cp", *both)
    try:
        assert all(alive(tmp_path / "cp").values())
    finally:
        again.send_signal(signal.SIGTERM)
        assert again.wait(60) == 0
