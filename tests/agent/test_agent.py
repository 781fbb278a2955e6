"""Real agents: enrol, connect, update, serve, and lose nothing while the broker is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from cloud.db.tables import (
    AssignmentEvent,
    Device,
    Inbox,
    Label,
    Metric,
    ModelVersion,
    Sample,
)

from .conftest import MODEL, until

pytestmark = pytest.mark.slow


def device(plane, name: str) -> Device:
    with plane.services.sessions() as session:
        row = session.get(Device, name)
        assert row is not None
        return row


@pytest.fixture
def enrolled(plane, agents, tmp_path):
    def make(name: str):
        agent = agents(name)
        claim = plane.claim(tmp_path / f"{name}.json")
        done = agent.command("enrol", "--claim", str(claim), "--name", name)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout
        return agent

    return make


def test_three_agents_update_serve_and_lose_nothing_while_the_broker_is_away(
    plane, enrolled, tmp_path
):
    sessions = plane.services.sessions
    with sessions.begin() as session:
        for version in (1, 2):
            session.add(
                ModelVersion(
                    model=MODEL, version=version, project="demo", state="champion", dataset="d",
                    code_sha="", job="", parent_version=None, metrics={}, environment={},
                    created_at=0.0,
                )
            )  # fmt: skip
    first = plane.release(1, tmp_path)
    names = ["edge-a", "edge-b", "edge-c"]
    agents = {name: enrolled(name) for name in names}
    for name, agent in agents.items():
        plane.assign(name, first)
        agent.start()
    for name, agent in agents.items():
        until(lambda a=agent: a.ready(1), what=agent.log())
        until(lambda n=name: device(plane, n).reported.get("models"), what="reported twin")
        assert device(plane, name).online

    sent: set[str] = set()

    def predict(count: int) -> None:
        for name, agent in agents.items():
            for _ in range(count):
                prediction_id = f"{name}-{len(sent)}"
                assert agent.predict(prediction_id, [0, 5, 1, 0]) == 1
                sent.add(prediction_id)

    predict(5)
    plane.broker.stop()
    try:
        for agent in agents.values():
            until(lambda a=agent: not a.status()["connected"])
        predict(5)
        corrected = next(iter(sorted(sent)))
        agent_of = agents[corrected.rsplit("-", 1)[0]]
        body = {"id": corrected, "label": "c"}
        assert agent_of.call("POST", f"/v2/models/{MODEL}/feedback", body)[0] == 200
        # one stops in order, one dies: both come back without a broker and serve at once
        assert agents["edge-a"].stop() == 0
        agents["edge-b"].kill()
        (agents["edge-b"].directory / "run" / "agent.json").unlink()
        for name in ("edge-a", "edge-b"):
            agents[name].start()
            until(lambda n=name: agents[n].ready(1), what=agents[name].log())
        predict(5)
        assert all(agent.status()["outbox"]["pending"] > 0 for agent in agents.values())
    finally:
        plane.broker.start()
    for agent in agents.values():
        until(lambda a=agent: a.status()["outbox"]["pending"] == 0, what=agent.log())
    with sessions() as session:
        uniform = session.scalars(select(Sample.prediction_id).where(Sample.policy == "uniform"))
        kept = uniform.all()
        labels = session.scalars(select(Label)).all()
        streams = session.execute(
            select(func.count(), func.min(Inbox.seq), func.max(Inbox.seq))
            .where(Inbox.device.in_(names))
            .group_by(Inbox.device, Inbox.stream)
        ).all()
        metrics = session.scalars(select(Metric).where(Metric.device.in_(names))).all()
    assert sorted(kept) == sorted(sent)
    assert [(label.prediction_id, label.label) for label in labels] == [(corrected, "c")]
    assert all(count == last and start == 1 for count, start, last in streams), streams
    assert len(streams) == 5
    assert sum(metric.report["errors"] for metric in metrics) == 0

    second = plane.release(2, tmp_path)
    plane.assign("edge-a", second)
    until(lambda: agents["edge-a"].ready(2), what=agents["edge-a"].log())

    def served() -> dict[str, object]:
        models: dict[str, object] = device(plane, "edge-a").reported["models"].get(MODEL, {})
        return models

    until(lambda: served().get("version") == 2 and served().get("phase") == "healthy")
    with sessions() as session:
        phases = session.scalars(
            select(AssignmentEvent.report).where(AssignmentEvent.device == "edge-a")
        ).all()
    assert [each["phase"] for each in phases if each["version"] == 2][-1] == "healthy"
    assert agents["edge-a"].stop() == 0
    until(lambda: not device(plane, "edge-a").online)


def test_an_idle_agent_uses_no_processor(plane, enrolled):
    agent = enrolled("idle")
    agent.start()
    until(lambda: agent.status()["connected"])
    stat = Path(f"/proc/{agent.process.pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def idle() -> bool:
        before = ticks()
        time.sleep(3.0)
        return ticks() - before <= 3  # 1 % of a core, at 100 ticks a second

    until(idle, what="three seconds with next to no processor time")


def test_a_claim_works_once_and_refusals_are_one_line(plane, enrolled, agents, tmp_path):
    enrolled("once")
    again = agents("again")
    done = again.command("enrol", "--claim", str(tmp_path / "once.json"), "--name", "again")
    assert done.returncode == 1
    assert "used" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (again.directory / "device.json").exists()


def test_a_second_agent_in_the_same_directory_is_refused(plane, enrolled):
    agent = enrolled("double")
    agent.start()
    done = agent.command("run")
    assert done.returncode == 1
    assert "another agent runs here" in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_of_a_device_is_for_others_to_read_whatever_its_directory_allows(
    plane, agents, tmp_path
):
    agent = agents("private")
    agent.directory.mkdir(exist_ok=True)
    agent.directory.chmod(0o755)
    done = agent.command("enrol", "--claim", str(plane.claim(tmp_path / "private.json")))
    assert done.returncode == 0, done.stderr
    agent.start()
    until(lambda: agent.status()["connected"])
    of_the_test = {"agent.log", "agent.toml"}
    open_to_others = [
        path
        for path in agent.directory.rglob("*")
        if path.name not in of_the_test and not path.is_symlink()
        if path.stat().st_mode & 0o077
    ]
    assert open_to_others == []
