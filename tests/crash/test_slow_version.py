"""Fault 28 on a real agent under traffic: a version that is too slow for its budget goes back."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.db.tables import Release
from cloud.publish import director_target
from edge_agent.wire import topics
from edge_agent.wire.manifest import Limits
from edge_agent.wire.messages import Desired, DesiredModel
from tests.agent.conftest import MODEL, Plane, Process, until

pytestmark = pytest.mark.slow

ASKED = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 1, 0]}]}
)
PROBATION_S = 4.0
CLIENTS = 3


@contextlib.contextmanager
def traffic(agent: Process) -> Iterator[set[int]]:
    """Clients that ask without a pause over a connection each; gives what they were answered."""
    statuses: set[int] = set()
    stopping = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", agent.about()["http_port"], timeout=30)
        while not stopping.is_set():
            connection.request("POST", f"/v2/models/{MODEL}/infer", ASKED)
            response = connection.getresponse()
            response.read()
            statuses.add(response.status)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    yield statuses
    stopping.set()
    for thread in threads:
        thread.join(60)


def assign(plane: Plane, device: str, release: Release, generation: int) -> None:
    """With a probation that is long enough for figures of latency."""
    plane.services.director.assign(
        device, [director_target(release, generation=generation, probation_s=PROBATION_S)]
    )
    want = DesiredModel(
        target=release.target, version=release.version, counter=release.counter,
        generation=generation, probation_s=PROBATION_S,
    )  # fmt: skip
    desired = Desired(version=generation, models={release.model: want})
    plane.connection.publish(topics.desired(device), desired.encode(), retain=True)


def test_fault_28_a_version_that_is_too_slow_is_reverted_by_its_probation(
    plane: Plane, agents, tmp_path: Path
) -> None:
    agent = agents("edge-slow")
    claim = plane.claim(tmp_path / "claim.json")
    assert agent.command("enrol", "--claim", str(claim), "--name", "edge-slow").returncode == 0
    plane.assign("edge-slow", plane.release(1, tmp_path))
    agent.start()
    until(lambda: agent.ready(1), what=agent.log())
    until(lambda: agent.status()["update"]["phase"] == "idle")
    # nothing answers within a microsecond: for this budget every machine is too slow
    slow = plane.release(2, tmp_path, limits=Limits(latency_p99_ms=0.001))
    with traffic(agent) as statuses:
        assign(plane, "edge-slow", slow, 2)
        until(lambda: agent.ready(2))
        until(lambda: agent.ready(1), 60.0)
    refusal = agent.status()["update"]["last_refusal"]
    assert (refusal["version"], refusal["phase"]) == (2, "rolled_back")
    assert refusal["reason"] == "health_latency" and "windows" in refusal["detail"]
    assert statuses == {200}, "no client noticed"
    until(lambda: plane.client.device("edge-slow").history[0]["reason"] == "health_latency")
