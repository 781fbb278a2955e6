"""Attack 32 on a real broker: two agents that share one key take turns, and that is seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.wire import topics
from tests.agent.conftest import Plane, Process, until

pytestmark = pytest.mark.slow

Agents = Callable[[str], Process]


def enrolled(plane: Plane, agents: Agents, tmp_path: Path, name: str) -> Process:
    agent = agents(name)
    claim = plane.claim(tmp_path / f"{name}.claim")
    done = agent.command("enrol", "--claim", str(claim), "--name", name)
    assert done.returncode == 0, done.stderr
    return agent


def alarms(plane: Plane, name: str) -> list[str]:
    return [alarm["action"] for alarm in plane.client.device(name).alarms]


def reported(plane: Plane, name: str) -> str:
    return str(plane.client.device(name).reported.get("boot", ""))


def test_attack_32_two_agents_with_one_key_raise_an_alarm(plane, agents, tmp_path) -> None:
    real = enrolled(plane, agents, tmp_path, "edge-a")
    copy = agents("copy")
    shutil.rmtree(copy.directory)
    shutil.copytree(real.directory, copy.directory)
    plane.assign("edge-a", plane.release(1, tmp_path))
    real.start()
    until(lambda: real.ready(1), what=real.log())
    assert alarms(plane, "edge-a") == []
    copy.start()
    until(lambda: alarms(plane, "edge-a"), what=real.log() + copy.log())
    assert alarms(plane, "edge-a") == ["device.identity_cloned"]
    assert real.ready(1), "nothing is taken from the device over it"
    copy.stop()
    until(lambda: real.status()["connected"])


def test_attack_32_an_agent_that_is_restarted_and_killed_raises_none(
    plane, agents, tmp_path
) -> None:
    agent = enrolled(plane, agents, tmp_path, "edge-b")
    seen: set[str] = set()
    for end in (agent.stop, agent.kill, agent.stop):
        agent.start()
        until(lambda: reported(plane, "edge-b") not in {*seen, ""}, what=agent.log())
        seen.add(reported(plane, "edge-b"))
        end()
        (agent.directory / "run" / "agent.json").unlink(missing_ok=True)
    assert len(seen) == 3
    assert alarms(plane, "edge-b") == []


def test_a_twin_that_cannot_be_read_reaches_the_control_plane_once(plane, agents, tmp_path) -> None:
    agent = enrolled(plane, agents, tmp_path, "edge-c")
    agent.start()
    until(lambda: agent.status()["connected"], what=agent.log())
    plane.connection.publish(topics.desired("edge-c"), b"{no twin", retain=True)
    until(lambda: alarms(plane, "edge-c"), what=agent.log())
    agent.stop()
    agent.start()
    until(lambda: agent.status()["connected"], what=agent.log())
    until(lambda: agent.status()["outbox"]["pending"] == 0)
    assert agent.status()["update"]["twin_refused"]["reason"] == "malformed_twin"
    assert alarms(plane, "edge-c") == ["device.twin.refused"]
