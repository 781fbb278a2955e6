"""Agents that are killed at random moments of updates, under traffic: no wrong answer is served.

`CRASH_ROUNDS` sets how many times; `make crash` asks for 200.
"""

from __future__ import annotations

import http.client
import math
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from cloud.db.tables import Release
from cloud.publish import publish_release
from tests.agent.conftest import MODEL, PROFILE, Plane, Process, tiny_bundle, until

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "4"))
VERSIONS = (1, 2, 3, 4)
ASKED = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 1, 0]}]}


def score(version: int) -> float:
    """What `tiny_bundle` of this version answers for the third class."""
    return math.exp(1 + version) / (math.exp(1 + version) + 3)


class Traffic:
    """A client that never stops asking, and judges every answer.

    Attributes:
        allowed: versions that may answer now.
        answers: how many came, by version.
        wrong: what should not have come.
    """

    def __init__(self, agent: Process, allowed: set[int]) -> None:
        self.allowed = allowed
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._agent = agent
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopping.is_set():
            allowed = set(self.allowed)
            try:
                status, answer = self._agent.call("POST", f"/v2/models/{MODEL}/infer", ASKED)
            except (OSError, ValueError, http.client.HTTPException):
                self._stopping.wait(0.02)  # it is dead, or about to be
                continue
            self._judge(status, answer, allowed | self.allowed)
            self._stopping.wait(0.002)

    def _judge(self, status: int, answer: dict, allowed: set[int]) -> None:
        if status != 200:
            if allowed:
                self.wrong.append(f"{status}: {answer}")
            return
        version = int(answer["model_version"])
        scores = next(each["data"] for each in answer["outputs"] if each["name"] == "scores")
        self.answers[version] += 1
        if version not in allowed or abs(scores[2] - score(version)) > 1e-5:
            self.wrong.append(f"version {version} answers {scores}, allowed are {allowed}")


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_fault_23_killed_at_random_under_traffic_no_wrong_answer_is_served(
    plane: Plane, agents, tmp_path: Path
) -> None:
    releases = {version: bundle(plane, tmp_path, version) for version in VERSIONS}
    agent = agents("edge-crash")
    claim = plane.claim(tmp_path / "claim.json")
    assert agent.command("enrol", "--claim", str(claim), "--name", "edge-crash").returncode == 0
    plane.assign("edge-crash", release(plane, releases, 1))
    agent.start()
    until(lambda: agent.ready(1), what=agent.log())
    chance = random.Random(ROUNDS)
    newest = 1
    with Traffic(agent, {1}) as traffic:
        for _ in range(ROUNDS):
            newest = chance.choice([version for version in VERSIONS if version != newest])
            traffic.allowed |= {newest}
            plane.assign("edge-crash", release(plane, releases, newest))
            time.sleep(chance.uniform(0.0, 2.5))
            agent.kill()
            # of the dead process: where the next one listens is to be seen when it says so
            (agent.directory / "run" / "agent.json").unlink(missing_ok=True)
            agent.start()
            before = sum(traffic.answers.values())
            until(lambda b=before: sum(traffic.answers.values()) > b, what=agent.log())
            assert not traffic.wrong
            if chance.random() < 0.3:
                # idle may be before the assignment came, too: what counts is that it has ended
                until(lambda new=newest: agent.ready(new), 60, what=agent.log()[-2000:])
                settled(agent)
                traffic.allowed = {newest}
        settled(agent)
        until(lambda: agent.ready(newest), 60, what=agent.log()[-2000:])
    print(f"{ROUNDS} rounds, {sum(traffic.answers.values())} answers, {traffic.wrong} wrong")
    assert not traffic.wrong
    assert agent.stop() == 0


def bundle(plane: Plane, directory: Path, version: int) -> str:
    return plane.services.blobs.put(tiny_bundle(directory / f"bundle-{version}", version))


def release(plane: Plane, bundles: dict[int, str], version: int) -> Release:
    """The version under a new counter, so that going back to it is an update as well."""
    with plane.services.sessions.begin() as session:
        return publish_release(
            session, plane.services.blobs, plane.services.image_repository,
            MODEL, version, PROFILE, bundles[version],
        )  # fmt: skip


def settled(agent: Process) -> None:
    """Waits until no update is under way, and none waits."""

    def idle() -> bool:
        try:
            _, status = agent.call("GET", "/status", unix=agent.about()["unix_socket"])
        except (OSError, ValueError, http.client.HTTPException):
            return False
        return status["update"]["phase"] == "idle" and status["models"][MODEL]["phase"] == "healthy"

    until(idle, 60, what="an end of the update")
