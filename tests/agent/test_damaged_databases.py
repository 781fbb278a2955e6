"""A real agent whose databases the disk damaged: it starts, serves, and takes the next release."""

from __future__ import annotations

import pytest

from .conftest import until

pytestmark = pytest.mark.slow


def test_fault_25_an_agent_with_damaged_databases_serves_without_a_broker(plane, agents, tmp_path):
    agent = agents("hurt")
    claim = plane.claim(tmp_path / "hurt.json")
    assert agent.command("enrol", "--claim", str(claim), "--name", "hurt").returncode == 0
    plane.assign("hurt", plane.release(1, tmp_path))
    agent.start()

    def proven(version: int) -> bool:
        model = agent.status()["models"].get("tiny", {})
        return (model.get("version"), model.get("phase")) == (version, "healthy")

    until(lambda: agent.ready(1) and proven(1), what=agent.log())
    plane.broker.stop()
    try:
        assert agent.stop() == 0
        for name in ("update/state.sqlite", "update/journal.sqlite", "outbox.db"):
            path = agent.directory / name
            path.write_bytes(bytes(path.stat().st_size))
        agent.start()
        until(lambda: agent.ready(1), what=agent.log())
        assert agent.predict("after", [0, 5, 1, 0]) == 1
        for name in ("update/state.sqlite", "update/journal.sqlite", "outbox.db"):
            assert (agent.directory / f"{name}.damaged").is_file()
    finally:
        plane.broker.start()
    until(lambda: plane.connection.connected, what="the control plane is back on the line")
    plane.assign("hurt", plane.release(2, tmp_path))
    until(lambda: agent.ready(2) and proven(2), what=agent.log())
    assert agent.stop() == 0
    assert "Traceback" not in agent.log()
