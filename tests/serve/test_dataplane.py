"""Swapping, observing, overload and counting, over HTTP where a client would notice."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.pipeline import StepFailed, golden
from edge_agent.serve import DataPlane, Limits, ModelNotServed, NotServable, Prediction, ServedModel
from edge_agent.serve.oip import MAX_BODY_BYTES
from edge_agent.wire.manifest import StepSpec
from tests.runtime.networks import LABELS, STEPS, images, write_bundle

from .conftest import Running, send, served, until
from .gates import gated
from .test_protocol import INFER, binary_request, json_request

ONE = {"image": images(1)}


def bundle(directory: Path, version: int, seed: int = 0, cost_us: float = 50.0) -> ServedModel:
    path = directory / f"slot-{version}-{seed}"
    write_bundle(path, version=version, seed=seed, cost_us=cost_us)
    return ServedModel.load(path)


# ── swapping ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cost_us", [50.0, 5000.0], ids=["inline", "thread"])
def test_no_request_is_dropped_or_mixed_while_models_are_swapped(
    cost_us: float, serving: Running, tmp_path: Path
) -> None:
    """Four clients ask without pause while versions come and go; every answer fits its version."""
    request = json_request()
    answers = {}
    for version in (1, 2):
        model = bundle(tmp_path, version, seed=version, cost_us=cost_us)
        answers[str(version)] = model.pipeline.run({"image": images(1)}).tensors["scores"][0]
    serving.plane.install("digits", bundle(tmp_path, 1, seed=1, cost_us=cost_us))
    stop = threading.Event()
    problems: list[str] = []
    seen: list[str] = []

    def ask() -> None:
        connection = serving.connect()
        while not stop.is_set():
            try:
                reply = send(connection, "POST", INFER, request)
            except (OSError, http.client.HTTPException) as error:
                problems.append(f"dropped: {error!r}")
                return
            if reply.status != 200:
                problems.append(f"{reply.status}: {reply.body!r}")
                continue
            version = reply.json["model_version"]
            seen.append(version)
            scores = np.float32(reply.json["outputs"][0]["data"])
            if not np.allclose(scores, answers[version], atol=1e-6):
                problems.append(f"version {version} answered as another")
        connection.close()

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    for turn in range(12):
        version = 2 - turn % 2
        path = tmp_path / f"slot-{version}-{version}"
        serving.plane.install("digits", ServedModel.load(path))
        count = len(seen)
        deadline = time.monotonic() + 5
        while len(seen) < count + 8 and time.monotonic() < deadline:
            time.sleep(0.001)
    stop.set()
    for client in clients:
        client.join()
    assert problems == []
    assert {"1", "2"} == set(seen)


def test_a_request_ends_with_the_model_it_began_with(tmp_path: Path) -> None:
    plane = DataPlane()
    old, gate = gated(tmp_path)

    async def swap() -> tuple[int, int]:
        plane.install("digits", old)
        asked = asyncio.create_task(plane.predict("digits", ONE))
        await asyncio.to_thread(gate.entered.acquire, timeout=5)
        plane.install("digits", bundle(tmp_path, 2))
        plane.install("digits", bundle(tmp_path, 3))  # the old one is now two versions back
        new = await plane.predict("digits", ONE)
        assert not gate.closed
        gate.open.set()
        return (await asked).version, new.version

    async def swap_and_settle() -> tuple[int, int]:
        versions = await swap()
        await asyncio.to_thread(until, lambda: gate.closed)
        return versions

    assert asyncio.run(swap_and_settle()) == (1, 3)


def test_the_previous_version_is_kept_and_comes_back_at_once(tmp_path: Path) -> None:
    plane = DataPlane()
    models = [bundle(tmp_path, version) for version in (1, 2)]
    for model in models:
        plane.install("digits", model)
    assert plane.previous["digits"] is models[0]
    assert plane.revert("digits")
    assert asyncio.run(plane.predict("digits", ONE)).version == 1
    assert not plane.revert("digits")
    with pytest.raises(StepFailed, match="closed"):
        models[1].pipeline.run(ONE)


def test_a_removed_model_is_not_served(tmp_path: Path) -> None:
    plane = DataPlane()
    plane.install("digits", bundle(tmp_path, 1))
    assert plane.remove("digits")
    assert not plane.remove("digits")
    with pytest.raises(ModelNotServed, match="no model 'digits'"):
        asyncio.run(plane.predict("digits", ONE))


# ── loading ──────────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_that_does_not_reproduce_its_answers_is_not_served(tmp_path: Path) -> None:
    write_bundle(tmp_path / "slot")
    inputs, outputs = golden.read(tmp_path / "slot/golden.npz")
    golden.write(tmp_path / "slot/golden.npz", inputs, outputs | {"scores": outputs["scores"] + 1})
    with pytest.raises(NotServable, match="digits 1: output 'scores' differs by 1"):
        ServedModel.load(tmp_path / "slot")
    assert ServedModel.load(tmp_path / "slot", check_golden=False).version == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "No such file"),
        ("manifest.json", b"{", "Manifest"),
        ("manifest.json", b" " * 300_000, "exceed the limit"),
        ("model.onnx", None, "no such file"),
        ("model.onnx", b"junk", "cannot be loaded"),
        ("golden.npz", None, "cannot be read"),
    ],
)
def test_a_damaged_bundle_is_one_clear_error(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "slot")
    if content is None:
        (tmp_path / "slot" / name).unlink()
    else:
        (tmp_path / "slot" / name).write_bytes(content)
    with pytest.raises(NotServable, match=message) as caught:
        ServedModel.load(tmp_path / "slot")
    assert "\n" not in str(caught.value)


def test_a_bundle_without_known_answers_is_warmed_up_with_zeros(tmp_path: Path) -> None:
    write_bundle(tmp_path / "slot", with_golden=False)
    model = ServedModel.load(tmp_path / "slot")
    assert model.cost.per_item_us > 0
    assert model.name == "digits"


# ── observing ────────────────────────────────────────────────────────────────────────────────────


def test_observers_see_what_was_asked_and_answered(serving: Running) -> None:
    reply = serving.ask("POST", INFER, json_request(2, id="seen"))
    (prediction,) = serving.seen()
    assert (prediction.prediction_id, prediction.model, prediction.version) == ("seen", "digits", 1)
    np.testing.assert_array_equal(prediction.inputs["image"], images(2))
    assert prediction.outputs["label"].tolist() == reply.json["outputs"][1]["data"]
    assert prediction.manifest.labels == LABELS
    assert prediction.latency_us > 0


def test_an_observer_that_fails_costs_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: list[Prediction]) -> None:
        raise OSError("disk full")

    plane = DataPlane(fail)
    plane.install("digits", bundle(tmp_path, 1))
    assert asyncio.run(plane.predict("digits", ONE)).version == 1
    assert "observe.failed" in caplog.text


def test_rejected_requests_are_counted_and_not_observed(serving: Running) -> None:
    bad = json_request()
    bad["inputs"][0]["data"] = [99.0] * 64  # type: ignore[index]
    assert serving.ask("POST", INFER, bad).status == 400
    assert serving.seen() == []
    assert serving.plane.window_metrics("digits").rejects == 1


# ── overload and failure ─────────────────────────────────────────────────────────────────────────


def test_more_requests_than_may_wait_are_turned_away(tmp_path: Path) -> None:
    model, gate = gated(tmp_path)
    with served(tmp_path, max_waiting=2) as serving:
        serving.plane.install("digits", model)
        statuses: list[int] = []
        clients = [
            threading.Thread(
                target=lambda: statuses.append(serving.ask("POST", INFER, json_request()).status)
            )
            for _ in range(3)
        ]
        clients[0].start()
        assert gate.entered.acquire(timeout=5)
        for client in clients[1:]:
            client.start()
        until(lambda: model.waiting == 2)
        refused = serving.ask("POST", INFER, json_request())
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.error == "model 'digits' is overloaded"
        assert serving.ask("GET", "/v2/health/live").status == 200  # the loop is free meanwhile
        text = serving.ask("GET", "/metrics").body.decode()
        labels = 'model="digits",version="1"'
        assert f"skerry_waiting_requests{{{labels}}} 2" in text
        assert f'skerry_requests_total{{{labels},outcome="overloaded"}} 1' in text
        gate.open.set()
        for client in clients:
            client.join()
        assert statuses == [200, 200, 200]
        assert serving.ask("POST", INFER, json_request()).status == 200


def test_waiting_requests_are_counted_per_model(tmp_path: Path) -> None:
    plane = DataPlane(max_waiting=1)
    (one, gate), (other, other_gate) = gated(tmp_path, 1), gated(tmp_path, 2)
    plane.install("one", one)
    plane.install("other", other)

    async def ask() -> list[object]:
        first = asyncio.create_task(plane.predict("one", ONE))
        await asyncio.to_thread(gate.entered.acquire, timeout=5)
        waiting = asyncio.create_task(plane.predict("one", ONE))
        await asyncio.sleep(0)
        refused = await asyncio.gather(plane.predict("one", ONE), return_exceptions=True)
        assert [type(each).__name__ for each in refused] == ["Overloaded"]
        elsewhere = asyncio.create_task(plane.predict("other", ONE))
        await asyncio.to_thread(other_gate.entered.acquire, timeout=5)
        gate.open.set()
        other_gate.open.set()
        return [each.version for each in await asyncio.gather(first, waiting, elsewhere)]

    assert asyncio.run(ask()) == [1, 1, 2]


@pytest.mark.parametrize("cost_us", [1.0, 1000.0], ids=["inline", "thread"])
def test_a_network_that_fails_is_500_and_an_error_of_the_version(
    cost_us: float, serving: Running, tmp_path: Path
) -> None:
    model, gate = gated(tmp_path, cost_us=cost_us)
    gate.fail = True
    gate.open.set()
    serving.plane.install("digits", model)
    reply = serving.ask("POST", INFER, json_request())
    assert reply.status == 500
    assert "told to fail" in reply.error
    window = serving.plane.window_metrics("digits")
    assert (window.requests, window.errors) == (1, 1)


def test_stopping_answers_what_was_asked(serving: Running, tmp_path: Path) -> None:
    model, gate = gated(tmp_path)
    serving.plane.install("digits", model)
    statuses: list[int] = []
    client = threading.Thread(
        target=lambda: statuses.append(serving.ask("POST", INFER, json_request()).status)
    )
    client.start()
    assert gate.entered.acquire(timeout=5)
    threading.Timer(0.1, gate.open.set).start()
    serving.call(serving.server.stop())
    client.join()
    assert statuses == [200]
    with pytest.raises(OSError):
        serving.ask("GET", "/v2")


def test_without_a_model_the_server_lives_but_is_not_ready(quick_serving: Running) -> None:
    quick_serving.plane.remove("digits")
    assert quick_serving.ask("GET", "/v2/health/live").status == 200
    assert quick_serving.ask("GET", "/v2/health/ready").status == 503
    assert quick_serving.ask("POST", INFER, json_request()).status == 404


# ── feedback ─────────────────────────────────────────────────────────────────────────────────────


def test_feedback_reaches_its_hook(serving: Running) -> None:
    prediction_id = serving.ask("POST", INFER, json_request()).json["id"]
    path = "/v2/models/digits/feedback"
    reply = serving.ask("POST", path, {"id": prediction_id, "label": "7"})
    assert (reply.status, reply.json) == (200, {"accepted": True})
    assert serving.feedback == [("digits", prediction_id, "7")]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"id": "unknown", "label": "7"}, 404, "prediction 'unknown' is not known (any more)"),
        ({"id": "x", "label": "17"}, 400, "unknown label '17'; did you mean"),
        ({"id": "x"}, 400, "feedback is not valid"),
        ({"id": 3, "label": "7"}, 400, "feedback is not valid"),
        ("{", 400, "feedback is not valid"),
    ],
)
def test_wrong_feedback_is_refused(
    body: str | dict[str, object], status: int, message: str, quick_serving: Running
) -> None:
    reply = quick_serving.ask("POST", "/v2/models/digits/feedback", body)
    assert reply.status == status
    assert message in reply.error
    assert quick_serving.ask("POST", "/v2/models/none/feedback", body).status == 404


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def test_windows_count_since_the_same_reader_asked_last(tmp_path: Path) -> None:
    now = [100.0]
    plane = DataPlane(clock=lambda: now[0])

    async def ask() -> None:
        for _ in range(5):
            await plane.predict("digits", ONE)
        now[0] += 10_000_000
        first = plane.window_metrics("digits", "report")
        assert (first.version, first.requests, first.errors, first.rejects) == (1, 5, 0, 0)
        assert 0 < first.p50_us <= first.p99_us
        await plane.predict("digits", ONE)
        now[0] += 7
        second = plane.window_metrics("digits", "report")
        assert (second.requests, second.window_s) == (1, 7)
        assert plane.window_metrics("digits", "probation").requests == 6
        assert plane.window_metrics("digits", "report").p99_us == 0

    plane.install("digits", bundle(tmp_path, 1))
    asyncio.run(ask())


def test_a_new_version_starts_counting_anew(tmp_path: Path) -> None:
    plane = DataPlane()
    plane.install("digits", bundle(tmp_path, 1))
    asyncio.run(plane.predict("digits", ONE))
    assert plane.window_metrics("digits").requests == 1
    plane.install("digits", bundle(tmp_path, 2))
    window = plane.window_metrics("digits")
    assert (window.version, window.requests) == (2, 0)


def test_metrics_are_exposed_for_prometheus(serving: Running) -> None:
    for _ in range(3):
        serving.ask("POST", INFER, json_request())
    reply = serving.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.body.decode()
    labels = 'model="digits",version="1"'
    assert f'skerry_requests_total{{{labels},outcome="predicted"}} 3' in text
    assert f'skerry_latency_seconds_bucket{{{labels},le="+Inf"}} 3' in text
    assert f"skerry_latency_seconds_count{{{labels}}} 3" in text
    buckets = [
        int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "_seconds_bucket{" in line
    ]
    assert buckets == sorted(buckets)
    assert STEPS[-1] == StepSpec(name="classify")


def test_large_requests_do_not_pile_up_behind_one_that_takes_long(tmp_path: Path) -> None:
    """How much the system takes in for the client is its own affair; the server holds little."""
    model, gate = gated(tmp_path)
    body, headers = binary_request(4096)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    ).encode() + body
    offered_bytes = 100 * 1024 * 1024
    limits = Limits(max_inflight_bytes=offered_bytes)
    with served(tmp_path, limits=limits) as running:
        running.plane.install("digits", model)
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
            client.setblocking(False)
            sent, held_bytes, quiet_since = 0, 0, time.monotonic()
            while time.monotonic() - quiet_since < 0.5 and sent < offered_bytes:
                held_bytes = max(held_bytes, limits.inflight_bytes)
                try:
                    sent += client.send(request[sent % len(request) :])
                    quiet_since = time.monotonic()
                except BlockingIOError:
                    time.sleep(0.01)
            gate.open.set()
    assert sent > held_bytes > MAX_BODY_BYTES
    assert held_bytes < MAX_BODY_BYTES + 2 * len(body)


def test_a_failure_is_logged_without_its_words_and_once_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    plane = DataPlane(clock=lambda: now)
    model, gate = gated(tmp_path)
    gate.fail = True
    gate.open.set()
    plane.install("digits", model)

    async def work() -> None:
        nonlocal now
        for turn in range(4):
            now += turn == 3
            with pytest.raises(StepFailed):
                await plane.predict("digits", {"image": images(1)})

    asyncio.run(work())
    failures = [line for line in caplog.messages if line.startswith("prediction.failed")]
    assert failures == [
        "prediction.failed model=digits version=1 step=model cause=RunFailed more=0",
        "prediction.failed model=digits version=1 step=model cause=RunFailed more=2",
    ]


def test_a_version_looked_up_before_it_ends_answers(tmp_path: Path) -> None:
    plane = DataPlane()

    async def work() -> None:
        plane.attach(asyncio.get_running_loop())
        for version in (1, 2):
            plane.install("digits", bundle(tmp_path, version))
        looked_up = plane.model("digits")
        reverting = threading.Thread(target=plane.revert, args=("digits",))
        reverting.start()
        reverting.join()
        done = asyncio.Event()
        tensors = {"image": images(1)}
        prediction = Prediction(
            "p", looked_up.manifest, tensors, 1, time.perf_counter(), lambda _: done.set()
        )
        plane.submit(looked_up, prediction)
        await asyncio.wait_for(done.wait(), 5)
        assert prediction.error is None and prediction.version == 2

    asyncio.run(work())
