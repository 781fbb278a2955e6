"""An agent with several models: one that loads or is damaged does not touch the others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from edge_agent import Predictor
from edge_agent.wire.manifest import Limits

from .conftest import MODEL, Process, until

pytestmark = pytest.mark.slow

OTHER = "other"
QUESTION = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 0, 0]}]}
SLOW_TO_LOAD = "import time\ntime.sleep(1.5)\n"


@pytest.fixture(scope="module")
def releases(plane, tmp_path_factory):
    directory = tmp_path_factory.mktemp("releases")
    return {
        (MODEL, 1): plane.release(1, directory),
        (MODEL, 2): plane.release(2, directory, code=SLOW_TO_LOAD),
        (MODEL, 3): plane.release(3, directory, limits=Limits(memory_mib=1)),
        (OTHER, 1): plane.release(1, directory, OTHER),
        (OTHER, 2): plane.release(2, directory, OTHER),
        (OTHER, 3): plane.release(3, directory, OTHER),
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


@contextlib.contextmanager
def watched(agent: Process) -> Iterator[list[tuple[int, int, str]]]:
    """Asks on and on; status of server and model, and the version that answered."""
    seen: list[tuple[int, int, str]] = []
    wrong: list[object] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            start = time.monotonic()
            server, _ = agent.call("GET", "/v2/health/ready")
            model, _ = agent.call("GET", f"/v2/models/{MODEL}/ready")
            code, answer = agent.call("POST", f"/v2/models/{MODEL}/infer", QUESTION)
            elapsed_s = time.monotonic() - start
            if code != 200 or elapsed_s > 1.0:  # a load takes 1.5 s
                wrong.append((code, answer, elapsed_s))
                return
            seen.append((server, model, answer["model_version"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        until(lambda: seen or wrong)
        yield seen
    finally:
        done.set()
        watcher.join(10)
    assert wrong == []
    assert {(server, model) for server, model, _ in seen} == {(200, 200)}


def test_ready_stays_up_and_answers_go_on_while_another_version_loads(plane, enrolled, releases):
    agent = enrolled("swapping")
    plane.assign("swapping", releases[MODEL, 1])
    agent.start()
    until(lambda: phases(agent) == {MODEL: "healthy"}, what=agent.log())
    with watched(agent) as seen:
        plane.assign("swapping", releases[MODEL, 2])
        until(lambda: seen[-1][2] == "2")
    versions = [version for _, _, version in seen]
    assert versions == sorted(versions)
    assert set(versions) == {"1", "2"}


def test_a_version_that_fails_its_probation_goes_back_at_once_to_the_one_in_memory(
    plane, enrolled, releases
):
    agent = enrolled("going-back")
    plane.assign("going-back", releases[MODEL, 2])  # which takes its time to load
    agent.start()
    until(lambda: phases(agent) == {MODEL: "healthy"}, what=agent.log())
    [slot] = agent.directory.glob(f"update/models/{MODEL}/slots/*")
    with watched(agent) as seen:
        plane.assign("going-back", releases[MODEL, 3])
        until(lambda: seen[-1][2] == "3")
        (slot / "model.onnx").unlink()  # even what is lost on the disk comes back
        until(lambda: seen[-1][2] == "2")
    until(lambda: "reason=health_memory" in agent.log())
    assert phases(agent) == {MODEL: "healthy"}
    assert "rolled_back" in agent.status()["models"][MODEL]["detail"]


def test_a_damaged_slot_stops_no_other_model_is_told_and_mended_by_itself(
    plane, enrolled, releases
):
    agent = enrolled("damaged")
    first, other = releases[MODEL, 1], releases[OTHER, 1]
    plane.assign("damaged", first, other)
    agent.start()
    until(lambda: phases(agent) == {MODEL: "healthy", OTHER: "healthy"}, what=agent.log())
    assert agent.command("pause").returncode == 0  # else it is mended at once
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
    assert agent.command("resume").returncode == 0
    until(lambda: agent.ready(1, MODEL), what=agent.log())
    until(lambda: phases(agent) == {MODEL: "healthy", OTHER: "healthy"}, what=agent.log())


def test_fault_30_a_group_changes_and_goes_back_as_a_whole(plane, enrolled, releases):
    agent = enrolled("grouped")
    both = (MODEL, OTHER)
    plane.assign("grouped", *(releases[model, 1] for model in both))
    agent.start()
    until(lambda: phases(agent) == dict.fromkeys(both, "healthy"), what=agent.log())
    plane.assign("grouped", *(releases[model, 2] for model in both), group="pair")
    until(lambda: all(agent.ready(2, model) for model in both), what=agent.log())
    until(lambda: phases(agent) == dict.fromkeys(both, "healthy"), what=agent.log())
    # one of the next breaks its limit of memory
    plane.assign("grouped", *(releases[model, 3] for model in both), group="pair")
    until(lambda: "reason=health_memory" in agent.log(), what=agent.log())
    until(lambda: all(agent.ready(2, model) for model in both), what=agent.log())
    until(lambda: phases(agent) == dict.fromkeys(both, "healthy"), what=agent.log())
    update = agent.status()["update"]
    assert update["phase"] == "idle"
    assert update["last_refusal"]["phase"] == "rolled_back"
    models = agent.status()["models"]
    assert "health_memory" in models[MODEL]["detail"]
    assert "group_failed" in models[OTHER]["detail"]
