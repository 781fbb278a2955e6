"""An agent with several models: one that loads or is damaged does not touch the others."""

from __future__ import annotations

import threading
import time

import pytest

from edge_agent import Predictor

from .conftest import MODEL, Process, until

pytestmark = pytest.mark.slow

OTHER = "other"
SLOW_TO_LOAD = "import time\ntime.sleep(1.5)\n"


@pytest.fixture(scope="module")
def releases(plane, tmp_path_factory):
    directory = tmp_path_factory.mktemp("releases")
    return {
        (MODEL, 1): plane.release(1, directory),
        (MODEL, 2): plane.release(2, directory, code=SLOW_TO_LOAD),
        (OTHER, 1): plane.release(1, directory, OTHER),
    }


@pytest.fixture
def enrolled(plane, agents, tmp_path):
    def make(name: str) -> Process:
        agent = agents(name)
        claim = plane.claim(tmp_path / f"{name}.json")
        done = agent.command("enrol", "--claim", str(claim), "--name", name)
        assert done.returncode == 0, done.stderr
        return agent

    return make


def phases(agent: Process) -> dict[str, str]:
    return {name: model["phase"] for name, model in agent.status()["models"].items()}


def test_ready_stays_up_and_answers_go_on_while_another_version_loads(plane, enrolled, releases):
    agent = enrolled("swapping")
    plane.assign("swapping", releases[MODEL, 1])
    agent.start()
    until(lambda: agent.ready(1), what=agent.log())
    seen: list[tuple[int, int, str]] = []
    slowest_s = 0.0
    swapped = threading.Event()

    def watch() -> None:
        nonlocal slowest_s
        body = {
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 0, 0]}]
        }
        while not swapped.is_set():
            start = time.monotonic()
            server, _ = agent.call("GET", "/v2/health/ready")
            model, _ = agent.call("GET", f"/v2/models/{MODEL}/ready")
            code, answer = agent.call("POST", f"/v2/models/{MODEL}/infer", body)
            assert code == 200, answer
            seen.append((server, model, answer["model_version"]))
            slowest_s = max(slowest_s, time.monotonic() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        plane.assign("swapping", releases[MODEL, 2])
        until(lambda: agent.ready(2), what=agent.log())
        until(lambda: seen[-1][2] == "2")
    finally:
        swapped.set()
        watcher.join(10)
    assert {(server, model) for server, model, _ in seen} == {(200, 200)}
    versions = [version for _, _, version in seen]
    assert versions == sorted(versions)
    assert set(versions) == {"1", "2"}
    assert slowest_s < 1.0  # a load takes 1.5 s


def test_a_damaged_slot_stops_no_other_model_is_told_and_can_be_mended(plane, enrolled, releases):
    agent = enrolled("damaged")
    first, other = releases[MODEL, 1], releases[OTHER, 1]
    plane.assign("damaged", first, other)
    agent.start()
    until(lambda: phases(agent) == {MODEL: "healthy", OTHER: "healthy"}, what=agent.log())
    assert agent.stop() == 0
    [network] = agent.directory.glob(f"update/models/{MODEL}/slots/*/model.onnx")
    data = bytearray(network.read_bytes())
    data[len(data) // 2] ^= 1
    network.write_bytes(data)

    agent.start()
    assert agent.ready(1, OTHER)
    assert not agent.ready(1, MODEL)
    state = agent.status()["models"]
    assert state[OTHER]["phase"] == "healthy"
    assert state[MODEL]["phase"] == "failed"
    assert "model.onnx differs from the manifest" in state[MODEL]["detail"]

    def reported() -> str:
        models = plane.client.device("damaged").reported.get("models", {})
        return str(models.get(MODEL, {}).get("phase"))

    until(lambda: reported() == "failed", what="the control plane sees it")
    with Predictor(agent.directory, OTHER) as predictor:  # while the agent runs
        assert predictor.version == 1
    plane.assign("damaged", first, other)
    until(lambda: agent.ready(1, MODEL), what=agent.log())
    until(lambda: phases(agent) == {MODEL: "healthy", OTHER: "healthy"}, what=agent.log())
