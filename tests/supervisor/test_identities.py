"""A device's identity under a whole `skerry up`: revoked by command line, gone within seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.cli.main import main
from cloud.supervisor import ask
from fleet.client.client import Client
from tests.agent.conftest import Process
from tests.supervisor.test_up import eventually, plane, ports

__all__ = ["plane", "ports"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def skerry(
    plane: tuple[Path, int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Runs a command against the control plane; returns what it said."""
    directory, _, _ = plane

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["skerry", *arguments, "--dir", str(directory)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    return run


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Process]:
    directory = tmp_path / "agent"
    directory.mkdir()
    (directory / "agent.toml").write_text(
        "http_port = 0\nreconnect_first_s = 0.1\nreconnect_max_s = 0.3\n"
    )
    agent = Process(directory)
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.kill()


def test_a_revoked_device_is_thrown_out_kept_out_and_comes_back_by_a_claim_for_it(
    plane: tuple[Path, int, int], skerry: Callable[..., str], agent: Process, tmp_path: Path
) -> None:
    directory, port, _ = plane
    claim = tmp_path / "claim.json"
    skerry("claims", "create", "--profile", "this-machine", "--batch", "first", "-o", str(claim))
    assert agent.command("enrol", "--claim", str(claim), "--name", "cam-1").returncode == 0
    listed = skerry("claims", "list", "--batch", "first")
    assert "used by cam-1" in listed
    agent.start()
    eventually(lambda: bool(agent.status()["connected"]))
    token = (directory / "tokens" / "admin").read_text().strip()
    with Client(f"http://127.0.0.1:{port}", token) as api:
        eventually(lambda: api.device("cam-1").online)
        said = skerry("devices", "revoke", "cam-1", "--reason", "stolen")
        assert "skerry claims create --device cam-1" in said
        eventually(lambda: not agent.status()["connected"], 10)
        seen = agent.log().count("link.connected")
        ask(directory, "restart", "broker")
        eventually(lambda: api.overview().broker_connected)
        # it knocks several times a second meanwhile
        eventually(lambda: agent.log().count("link.unreachable") >= 3)
        assert not agent.status()["connected"]
        assert agent.log().count("link.connected") == seen
        device = api.device("cam-1")
        assert (device.revoked, device.revoked_reason, device.online) == (True, "stolen", False)
        assert agent.status()["device"] == "cam-1"  # it serves on
        again = tmp_path / "again.json"
        skerry("claims", "create", "--device", "cam-1", "-o", str(again))
        assert agent.command("enrol", "--again", "--claim", str(again)).returncode == 0
        eventually(lambda: api.device("cam-1").online)
        assert not api.device("cam-1").revoked
    assert agent.stop() == 0


def test_a_batch_of_claims_is_revoked_by_one_command(
    skerry: Callable[..., str], tmp_path: Path
) -> None:
    skerry(
        "claims", "create", "--profile", "this-machine", "--batch", "second", "--count", "3",
        "-o", str(tmp_path / "claims"),
    )  # fmt: skip
    assert "revoked 3 open claims of batch second" in skerry(
        "claims", "revoke", "--batch", "second"
    )
    assert skerry("claims", "list", "--batch", "second").count("revoked") == 3
