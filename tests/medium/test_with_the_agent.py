"""A real agent and a real broker: commands about updates, and a stick brought to a cut-off site."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.cli.export_medium import write_medium
from cloud.db.tables import Device, Release
from cloud.orchestrator.twins import director_targets, set_model
from fleet.client.schemas import ExportIn
from tests.agent.conftest import MODEL, Plane, Process, agents, plane, until

__all__ = ["agents", "plane"]  # fixtures

pytestmark = pytest.mark.slow


@pytest.fixture
def agent(plane: Plane, agents: Callable[[str], Process], tmp_path: Path) -> Process:
    made = agents(f"site-{time.monotonic_ns()}")
    claim = plane.claim(tmp_path / "claim.json")
    enrolled = made.command("enrol", "--claim", str(claim), "--name", made.directory.name)
    assert enrolled.returncode == 0, enrolled.stderr
    return made


def release(plane: Plane, tmp_path: Path, version: int) -> Release:
    return plane.release(version, tmp_path)


def assign_silently(plane: Plane, device: str, made: Release) -> None:
    """Sign an assignment that no message tells the device of."""
    with plane.services.sessions.begin() as session:
        row = session.get_one(Device, device)
        set_model(session, row, MODEL, made, rollout=None, probation_s=0.3, now=time.time())
        plane.services.director.assign(device, director_targets(session, row))


def bring(plane: Plane, device: str, stick: Path) -> Path:
    made = plane.client.export(ExportIn(devices=[device]))
    write_medium(
        stick,
        made,
        lambda blob, offset: plane.client.export_blob(blob.target, blob.sha256, offset=offset),
        lambda count: None,
    )
    return stick


def test_an_agent_without_a_line_installs_from_a_stick_and_serves_it(
    plane: Plane, agent: Process, tmp_path: Path
) -> None:
    device = agent.directory.name
    plane.broker.stop()
    try:
        assign_silently(plane, device, release(plane, tmp_path, 1))
        stick = bring(plane, device, tmp_path / "stick")
        agent.start()
        done = agent.command("install", "--from", str(stick))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "tiny 1 serves\n"
        assert agent.ready(1)
        install = agent.status()["install"]
        assert (install["running"], install["refusal"]) == (False, None)
        assert [each["phase"] for each in install["results"]] == ["healthy"]
    finally:
        plane.broker.start()


def test_what_was_installed_without_an_agent_is_served_and_judged_by_the_next_start(
    plane: Plane, agent: Process, tmp_path: Path
) -> None:
    device = agent.directory.name
    assign_silently(plane, device, release(plane, tmp_path, 2))
    stick = bring(plane, device, tmp_path / "stick")
    done = agent.command("install", "--from", str(stick))
    assert (done.returncode, done.stderr) == (0, "")
    assert "from its next start on" in done.stdout
    agent.start()
    until(lambda: agent.ready(2), what="the version from the stick")
    until(
        lambda: agent.status()["models"].get(MODEL, {}).get("phase") == "healthy",
        what="the end of its probation",
    )


def test_a_bad_stick_is_one_line_and_touches_nothing(
    plane: Plane, agent: Process, tmp_path: Path
) -> None:
    agent.start()
    done = agent.command("install", "--from", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "there is no medium.json" in done.stderr
    device = agent.directory.name
    assign_silently(plane, device, release(plane, tmp_path, 3))
    stick = bring(plane, device, tmp_path / "stick")
    for path in (stick / "blobs").iterdir():
        path.unlink()
    done = agent.command("install", "--from", str(stick))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "bad_medium" in done.stderr
    assert not agent.ready(3)


def test_a_paused_device_installs_nothing_by_itself_until_it_goes_on(
    plane: Plane, agent: Process, tmp_path: Path
) -> None:
    agent.start()
    assert agent.command("pause").returncode == 0
    assert agent.status()["update"]["paused"] is True
    plane.assign(agent.directory.name, release(plane, tmp_path, 4))
    until(lambda: agent.status()["update"]["reason"] == "paused", what="the refusal to begin")
    assert agent.stop() == 0
    agent.start()
    assert agent.status()["update"]["paused"] is True
    assert agent.command("resume").returncode == 0
    until(lambda: agent.ready(4), what="the version that waited")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_commands_to_an_agent_that_does_not_run_are_one_line(
    agents: Callable[[str], Process], command: str
) -> None:
    done = agents("still").command(command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no agent runs here" in done.stderr
