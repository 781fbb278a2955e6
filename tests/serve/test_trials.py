"""A version beside the one that serves: splitting, shadowing, naming, ending; over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime import RunFailed
from edge_agent.serve import DataPlane, ModelNotServed, NotServable, Prediction, ServedModel
from edge_agent.serve.shadow import Shadow
from edge_agent.serve.split import Split
from edge_agent.wire.manifest import CostModel
from tests.runtime.networks import images, write_bundle

from .conftest import Running, send, until
from .gates import POISON, Doubling, doubling, rows
from .test_protocol import INFER, binary_request, json_request

PREDICT = "/v2/models/digits/predict"


def challenger(directory: Path, version: int = 2, *, seed: int = 7) -> ServedModel:
    path = directory / f"slot-{version}"
    write_bundle(path, version=version, seed=seed, cost_us=50.0)
    return ServedModel.load(path)


def scores(model: ServedModel, count: int = 1) -> np.ndarray:
    return model.pipeline.run({"image": images(count)}).tensors["scores"]


def test_a_share_of_the_requests_is_answered_by_the_challenger_and_says_so(
    quick_serving: Running, tmp_path: Path
) -> None:
    """JSON, binary and task requests, whose answers are made from forms that are remembered."""
    plane = quick_serving.plane
    other = challenger(tmp_path)
    expected = {"1": scores(plane.models["digits"])[0], "2": scores(other)[0]}
    plane.try_beside("digits", other, "ab", 0.5, "salt")
    seen: Counter[str] = Counter()
    connection = quick_serving.connect()
    body, headers = binary_request(parameters={"binary_data_output": True})
    for number in range(60):
        key = {"Skerry-Sticky-Key": f"client-{number}"}
        reply = send(connection, "POST", INFER, json_request(), key)
        version = reply.json["model_version"]
        assert version == ("2" if Split("salt", 0.5).takes(f"client-{number}") else "1")
        np.testing.assert_allclose(
            np.float32(reply.json["outputs"][0]["data"]), expected[version], atol=1e-6
        )
        again = send(connection, "POST", INFER, body, headers | key)
        head, tensors = answer_of(again)
        assert head["model_version"] == version
        np.testing.assert_allclose(tensors, expected[version], atol=1e-6)
        task = send(connection, "POST", PREDICT, {"inputs": {"image": images(1).tolist()}}, key)
        assert task.json["model_version"] == version
        seen[version] += 1
    connection.close()
    assert seen["1"] > 15 and seen["2"] > 15
    window = plane.trial_metrics("digits")
    assert (window.version, window.requests) == (2, 3 * seen["2"])
    assert plane.window_metrics("digits").requests == 3 * seen["1"]
    assert {each.version for each in quick_serving.seen()} == {1, 2}
    text = quick_serving.ask("GET", "/metrics").body.decode()
    assert 'model="digits",version="2"' in text


def answer_of(reply) -> tuple[dict, np.ndarray]:
    length = int(reply.headers["inference-header-content-length"])
    return json.loads(reply.body[:length]), np.frombuffer(reply.body[length : length + 40], "<f4")


def test_a_request_asked_again_under_its_id_meets_the_same_version(
    quick_serving: Running, tmp_path: Path
) -> None:
    quick_serving.plane.try_beside("digits", challenger(tmp_path), "ab", 0.5, "salt")
    for number in range(12):
        versions = {
            quick_serving.ask("POST", INFER, json_request(id=f"r{number}")).json["model_version"]
            for _ in range(3)
        }
        assert len(versions) == 1


def test_the_share_changes_without_loading_and_ends_at_nothing_and_all(
    quick_serving: Running, tmp_path: Path
) -> None:
    plane = quick_serving.plane
    plane.try_beside("digits", challenger(tmp_path), "ab", 1.0, "salt")
    assert version_of(quick_serving) == "2"
    plane.set_trial("digits", "ab", 0.0)
    assert version_of(quick_serving) == "1"
    plane.set_trial("digits", "ab", 1.0)
    assert version_of(quick_serving) == "2"


def version_of(running: Running, path: str = INFER) -> str:
    reply = running.ask("POST", path, json_request())
    assert reply.status == 200, reply.body
    return reply.json["model_version"]


def test_a_request_that_names_a_version_is_answered_by_it(
    quick_serving: Running, tmp_path: Path
) -> None:
    plane = quick_serving.plane
    plane.try_beside("digits", challenger(tmp_path), "ab", 1.0, "salt")
    assert version_of(quick_serving, "/v2/models/digits/versions/1/infer") == "1"
    assert version_of(quick_serving) == "2"
    assert version_of(quick_serving, "/v2/models/digits/versions/2/infer") == "2"
    plane.set_trial("digits", "ab", 0.0)
    assert version_of(quick_serving, "/v2/models/digits/versions/2/infer") == "2"
    plane.set_trial("digits", "shadow", 1.0)
    assert version_of(quick_serving, "/v2/models/digits/versions/1/infer") == "1"
    refused = quick_serving.ask("POST", "/v2/models/digits/versions/2/infer", json_request())
    assert refused.status == 404


def test_no_request_is_dropped_while_trials_begin_change_and_end(
    quick_serving: Running, tmp_path: Path
) -> None:
    plane, problems, stop = quick_serving.plane, [], threading.Event()
    write_bundle(tmp_path / "slot-2", version=2, seed=7, cost_us=50.0)
    body, headers = binary_request(parameters={"binary_data_output": True})
    answered = Counter()

    def ask() -> None:
        connection = quick_serving.connect()
        while not stop.is_set():
            try:
                reply = send(connection, "POST", INFER, body, headers)
            except (OSError, http.client.HTTPException) as error:
                problems.append(f"dropped: {error!r}")
                return
            if reply.status != 200:
                problems.append(f"{reply.status}: {reply.body!r}")
            answered["all"] += 1
        connection.close()

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()

    def some_more() -> None:
        count = answered["all"]
        until(lambda: answered["all"] > count + 20 or problems)

    for turn in range(4):
        plane.try_beside("digits", ServedModel.load(tmp_path / "slot-2"), "ab", 0.5, f"{turn}")
        some_more()
        plane.set_trial("digits", "shadow", 1.0)
        some_more()
        plane.set_trial("digits", "ab", 0.3)
        some_more()
        assert plane.promote("digits") if turn == 3 else plane.end_trial("digits")
        some_more()
    stop.set()
    for client in clients:
        client.join()
    assert problems == []
    assert plane.models["digits"].version == 2


def test_a_promoted_challenger_serves_and_the_champion_is_kept_for_going_back(
    quick_serving: Running, tmp_path: Path
) -> None:
    plane = quick_serving.plane
    other = challenger(tmp_path)
    plane.try_beside("digits", other, "shadow", 1.0, "salt")
    assert plane.promote("digits")
    assert not plane.promote("digits")
    assert version_of(quick_serving) == "2" and plane.models["digits"] is other
    assert plane.revert("digits")
    assert version_of(quick_serving) == "1"


def test_a_trial_goes_on_beside_a_new_version_and_ends_beside_a_different_one(
    quick_serving: Running, tmp_path: Path
) -> None:
    plane = quick_serving.plane
    plane.try_beside("digits", challenger(tmp_path), "ab", 1.0, "salt")
    plane.install("digits", challenger(tmp_path, 3, seed=3))
    assert version_of(quick_serving) == "2"
    plane.set_trial("digits", "ab", 0.0)
    assert version_of(quick_serving) == "3"
    different = challenger(tmp_path, 4)
    different.manifest = different.manifest.model_copy(update={"outputs": ()})
    plane.install("digits", different)
    assert plane.trials == {}


def test_a_version_with_another_interface_is_not_tried(tmp_path: Path) -> None:
    plane = DataPlane()
    plane.install("m", doubling(Doubling()))
    with pytest.raises(NotServable, match="m 2 has other inputs than version 1"):
        plane.try_beside("m", doubling(Doubling(), shape=(-1, 3), version=2), "ab", 0.5, "s")
    with pytest.raises(ModelNotServed, match="no model 'other'"):
        plane.try_beside("other", doubling(Doubling()), "ab", 0.5, "s")
    with pytest.raises(ModelNotServed, match="nothing is tried beside model 'm'"):
        plane.set_trial("m", "ab", 0.5)
    assert not plane.end_trial("m")


def test_what_the_challenger_has_no_time_for_is_answered_by_the_champion() -> None:
    held = Doubling(held=True)
    slow = CostModel(per_item_us=0, fixed_us=5000)
    plane = DataPlane(max_waiting=1)
    plane.install("m", doubling(Doubling()))
    plane.try_beside("m", doubling(held, version=2, cost=slow), "ab", 1.0, "s")

    async def ask() -> list[int]:
        waiting = [asyncio.create_task(plane.predict("m", rows(1)))]
        await asyncio.to_thread(held.entered.acquire, timeout=5)
        waiting.append(asyncio.create_task(plane.predict("m", rows(1))))
        await asyncio.sleep(0)  # it waits behind the one that runs
        by_champion = [(await plane.predict("m", rows(1))).version for _ in range(3)]
        held.open.set()
        return [*by_champion, *[(await each).version for each in waiting]]

    assert asyncio.run(ask()) == [1, 1, 1, 2, 2]
    assert plane.trials["m"].challenger.metrics.snapshot(0.0).shed == {"overloaded": 3}
    assert plane.models["m"].metrics.snapshot(0.0).shed == {}
    plane.close()


# ── shadow ───────────────────────────────────────────────────────────────────────────────────────


def shadowed(network: Doubling, share: float = 1.0) -> DataPlane:
    plane = DataPlane()
    plane.install("m", doubling(Doubling()))
    plane.try_beside("m", doubling(network, version=2), "shadow", share, "s")
    return plane


def ask_all(plane: DataPlane, *values: float) -> list[int]:
    async def ask() -> list[int]:
        return [(await plane.predict("m", rows(value))).version for value in values]

    return asyncio.run(ask())


def test_a_shadow_computes_the_same_inputs_and_the_live_version_answers() -> None:
    network = Doubling()
    plane = shadowed(network)
    assert ask_all(plane, 1, 2, 3) == [1, 1, 1]
    until(lambda: plane.trials["m"].shadow.waiting == 0)
    report = plane.take_comparison("m")
    assert report is not None
    assert (report.compared, report.disagreed, report.errors, report.shed) == (3, 0, 0, 0)
    assert (report.scored, report.abs_max) == (3, 0.0)
    window = plane.trial_metrics("m")
    assert (window.version, window.requests, window.errors) == (2, 3, 0)
    assert plane.window_metrics("m").requests == 3
    assert plane.take_comparison("m") is None
    assert plane.snapshots()[0][1] == 1 and len(plane.snapshots()) == 1
    plane.close()


class Triple(Doubling):
    """y = 3·x."""

    def run(self, tensors):
        return {"y": super().run(tensors)["y"] * 1.5}


def test_numeric_differences_of_a_shadow_are_counted() -> None:
    plane = shadowed(Triple())
    ask_all(plane, 1, 2)
    until(lambda: plane.trials["m"].shadow.waiting == 0)
    report = plane.take_comparison("m")
    assert report is not None
    assert (report.abs_max, report.abs_mean) == (2.0, 1.5)
    plane.close()


def test_a_shadow_that_fails_is_counted_and_the_client_never_notices() -> None:
    class Failing(Doubling):
        def run(self, tensors):
            raise RunFailed("broken")

    plane = shadowed(Failing())
    assert ask_all(plane, 1, 2) == [1, 1]
    until(lambda: plane.trials["m"].shadow.waiting == 0)
    report = plane.take_comparison("m")
    assert report is not None and (report.compared, report.errors) == (0, 2)
    assert plane.trial_metrics("m").errors == 2
    assert plane.window_metrics("m").errors == 0
    plane.close()


def test_a_shadow_that_hangs_delays_nobody_and_what_does_not_fit_is_left_out() -> None:
    network = Doubling(held=True)
    plane = shadowed(network)
    assert ask_all(plane, *range(60)) == [1] * 60
    shadow = plane.trials["m"].shadow
    assert shadow.waiting <= 33
    report = plane.take_comparison("m")
    assert report is not None and report.shed >= 60 - 33
    network.open.set()
    plane.close()
    until(lambda: network.closed)


def test_nothing_is_taken_and_nothing_begun_while_live_requests_wait() -> None:
    network, live_waiting = Doubling(held=True), [0]
    model = doubling(network, version=2)
    shadow = Shadow(model.manifest, model.pipeline, lambda: live_waiting[0])
    answered = Prediction("id", model.manifest, rows(1), 1, 0.0, lambda _: None)
    answered.outputs = {"y": 2 * rows(1)["x"]}
    shadow.offer(answered)
    assert network.entered.acquire(timeout=5)
    shadow.offer(answered)  # taken, but not begun
    live_waiting[0] = 1
    shadow.offer(answered)
    network.open.set()
    until(lambda: shadow.waiting == 0)
    report = shadow.take_report()
    assert report is not None and (report.compared, report.shed) == (1, 2)
    shadow.stop(model.pipeline.close)
    until(lambda: network.closed)


def test_a_failed_request_is_not_shadowed() -> None:
    network = Doubling()
    plane = shadowed(network)
    with pytest.raises(Exception, match="poison"):
        ask_all(plane, POISON)
    assert plane.take_comparison("m") is None
    plane.close()


def test_only_a_share_is_shadowed() -> None:
    network = Doubling()
    plane = shadowed(network, 0.0)
    ask_all(plane, 1, 2, 3)
    assert plane.trials["m"].shadow.waiting == 0 and network.runs == []
    plane.close()


def test_a_shadow_closes_its_network_only_when_it_is_done_with_it() -> None:
    network = Doubling(held=True)
    plane = shadowed(network)
    ask_all(plane, 1)
    assert network.entered.acquire(timeout=5)
    assert plane.end_trial("m")
    assert not network.closed
    network.open.set()
    until(lambda: network.closed)
    plane.close()
