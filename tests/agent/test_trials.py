"""A real agent that tries a version: signed, over the broker, with figures in the database."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import select

from cloud.db.tables import Device, Metric, ModelVersion
from cloud.publish import director_target
from edge_agent.wire import topics
from edge_agent.wire.messages import Desired, DesiredModel, DesiredTrial

from .conftest import MODEL, until

pytestmark = pytest.mark.slow

QUESTION = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 0, 0]}]}


def order(plane, name: str, version: int, champion, other=None, **terms: object) -> None:
    """Sign what the device is to serve and to try, and publish the twin."""
    targets = [director_target(champion, generation=1, probation_s=0.3)]
    serve = DesiredModel(
        target=champion.target, version=champion.version, counter=champion.counter, generation=1,
        probation_s=0.3,
    )  # fmt: skip
    trials = {}
    if other is not None:
        targets.append(director_target(other, generation=2, probation_s=0.3, **terms))
        trials[MODEL] = DesiredTrial(
            target=other.target, version=other.version, counter=other.counter, generation=2,
            probation_s=0.3, **terms,
        )  # fmt: skip
    plane.services.director.assign(name, targets)
    twin = Desired(version=version, models={MODEL: serve}, trials=trials)
    plane.connection.publish(topics.desired(name), twin.encode(), retain=True)


def test_an_agent_splits_shadows_promotes_and_drops_as_the_director_says(
    plane, agents, tmp_path
) -> None:
    sessions = plane.services.sessions
    with sessions.begin() as session:
        for version in (11, 12):
            session.add(
                ModelVersion(
                    model=MODEL, version=version, project="demo", state="champion", dataset="d",
                    code_sha="", job="", parent_version=None, metrics={}, environment={},
                    created_at=0.0,
                )
            )  # fmt: skip
    champion, other = plane.release(11, tmp_path), plane.release(12, tmp_path)
    agent = agents("trial-a")
    claim = plane.claim(tmp_path / "claim.json")
    assert agent.command("enrol", "--claim", str(claim), "--name", "trial-a").returncode == 0
    order(plane, "trial-a", 1, champion)
    agent.start()
    until(lambda: agent.ready(11), what=agent.log())

    def challenger() -> dict[str, object]:
        found: dict[str, object] = agent.status()["models"][MODEL].get("challenger") or {}
        return found

    def asked(count: int, key: str = "") -> Counter[str]:
        seen: Counter[str] = Counter()
        for number in range(count):
            headers = {"Skerry-Sticky-Key": key or f"client-{number}"}
            code, answer = agent.call("POST", f"/v2/models/{MODEL}/infer", QUESTION, headers)
            assert code == 200, answer
            seen[answer["model_version"]] += 1
        return seen

    order(plane, "trial-a", 2, champion, other, mode="ab", share=0.5)
    until(lambda: challenger().get("phase") == "healthy", what=agent.log())
    seen = asked(60)
    assert seen["11"] > 10 and seen["12"] > 10
    assert len(asked(5, "press-7")) == 1

    # a split that only the twin names is not taken
    forged = Desired(
        version=3,
        models={
            MODEL: DesiredModel(
                target=champion.target, version=11, counter=champion.counter, generation=1
            )
        },
        trials={
            MODEL: DesiredTrial(
                target=other.target, version=12, counter=other.counter, generation=2, mode="ab",
                share=1.0,
            )
        },
    )  # fmt: skip
    plane.connection.publish(topics.desired("trial-a"), forged.encode(), retain=True)
    until(lambda: "trial.hint_not_signed" in agent.log())
    assert challenger()["share"] == 0.5

    # a restart goes on where it was
    assert agent.stop() == 0
    agent.start()
    until(lambda: challenger().get("phase") == "healthy", what=agent.log())
    assert asked(60)["12"] > 10

    order(plane, "trial-a", 4, champion, other, mode="shadow", share=1.0)
    until(lambda: challenger().get("mode") == "shadow", what=agent.log())
    assert asked(30) == {"11": 30}

    def reports(trial: str) -> list[dict[str, object]]:
        with sessions() as session:
            rows = session.scalars(
                select(Metric.report).where(Metric.device == "trial-a", Metric.version == 12)
            ).all()
        return [row for row in rows if row["trial"] == trial]

    def compared() -> int:
        return sum((row["comparison"] or {}).get("compared", 0) for row in reports("shadow"))

    until(lambda: compared() > 0, what=agent.log())
    assert sum(row["requests"] for row in reports("ab")) > 20
    with sessions() as session:
        device = session.get_one(Device, "trial-a")
    assert device.reported["models"][MODEL]["challenger"]["version"] == 12

    # dropped, and tried and promoted once more
    order(plane, "trial-a", 5, champion)
    until(lambda: not challenger(), what=agent.log())
    assert asked(10) == {"11": 10}
    order(plane, "trial-a", 6, champion, other, mode="ab", share=0.5)
    until(lambda: challenger().get("phase") == "healthy", what=agent.log())
    plane.generations["trial-a"] = 6
    plane.assign("trial-a", other)
    until(lambda: agent.ready(12) and not challenger(), what=agent.log())
    until(lambda: agent.status()["models"][MODEL]["phase"] == "healthy")
    assert asked(10) == {"12": 10}
    assert agent.stop() == 0
