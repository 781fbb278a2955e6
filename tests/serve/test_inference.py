"""What the routes that predict do around a prediction: plans, forms, traces, compression, time."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.runtime import Tensors, numpy_dtype
from edge_agent.runtime.datatypes import datatype_of
from edge_agent.serve import BadRequest, Prediction, ServedModel, oip
from edge_agent.wire.manifest import CostModel, StepSpec, TensorSpec
from tests.runtime.networks import STEPS, images, write_bundle

from .conftest import Reply, Running, send, served, until
from .gates import Doubling, alter, doubling, gated
from .test_protocol import INFER, binary_request, expected, json_request

BINARY = {"parameters": {"binary_data_output": True}}


def memo(running: Running) -> dict[bytes, object]:
    """The plans that the served version has."""
    return running.plane.models["digits"].memo


def infer(
    running: Running, values: np.ndarray[Any, Any], headers: dict[str, str] | None = None,
    **more: object,
) -> Reply:  # fmt: skip
    """A binary request with `values` as the image."""
    body, length = binary_request(len(values), **more)
    body = body[: int(length["Inference-Header-Content-Length"])] + values.tobytes()
    return running.ask("POST", INFER, body, length | (headers or {}))


def head_and_tail(reply: Reply) -> tuple[dict[str, Any], bytes]:
    assert reply.status == 200, reply.body
    length = int(reply.headers["inference-header-content-length"])
    return json.loads(reply.body[:length]), reply.body[length:]


# ── plans ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("more", [{}, BINARY], ids=["JSON out", "binary out"])
def test_bodies_with_the_same_head_are_read_by_one_plan(
    more: dict[str, object], quick_serving: Running
) -> None:
    pipeline = quick_serving.plane.models["digits"].pipeline
    for seed in range(4):
        values = images(2, seed=seed)
        reply = infer(quick_serving, values, **more)
        labels = pipeline.run({"image": values}).tensors["label"]
        if more:
            _, tail = head_and_tail(reply)
            np.testing.assert_array_equal(np.frombuffer(tail[2 * 40 :], "<i8"), labels)
        else:
            assert reply.json["outputs"][1]["data"] == labels.tolist()
        assert len(memo(quick_serving)) == 1


def test_a_head_with_an_id_or_a_long_one_is_not_remembered(quick_serving: Running) -> None:
    """No other request will have the same; it would push out those that others have."""
    for more in ({"id": "mine"}, {"parameters": {"note": "x" * oip.MAX_KEPT_HEAD_BYTES}}):
        reply = infer(quick_serving, images(1), **more)
        assert reply.status == 200
        assert reply.json["id"] == more.get("id", reply.json["id"])
    assert memo(quick_serving) == {}


def test_a_head_that_was_refused_is_not_remembered(quick_serving: Running) -> None:
    body, headers = binary_request(1)
    wrong = body.replace(b'"image"', b'"imagf"')
    for _ in range(2):
        reply = quick_serving.ask("POST", INFER, wrong, headers)
        assert (reply.status, reply.error) == (400, "input 'image' is missing")
    assert memo(quick_serving) == {}


def test_few_plans_are_kept_however_many_heads_come(quick_serving: Running) -> None:
    connection = quick_serving.connect()
    for count in range(oip.MAX_KEPT_PLANS + 20):
        body, headers = binary_request(1, parameters={"note": count})
        assert send(connection, "POST", INFER, body, headers).status == 200
        assert len(memo(quick_serving)) <= oip.MAX_KEPT_PLANS
    connection.close()
    assert memo(quick_serving)


@pytest.mark.parametrize("change", [-4, 4])
def test_a_body_that_is_no_longer_what_its_head_describes_is_refused(
    change: int, quick_serving: Running
) -> None:
    body, headers = binary_request(1)
    assert quick_serving.ask("POST", INFER, body, headers).status == 200
    other = body[:change] if change < 0 else body + b"\0" * change
    reply = quick_serving.ask("POST", INFER, other, headers)
    assert reply.status == 400
    assert reply.error == f"a body of {len(other)} bytes; its JSON describes {len(body)}"
    assert quick_serving.ask("POST", INFER, body, headers).status == 200


def test_a_checker_sees_every_body_of_a_plan(quick_serving: Running) -> None:
    assert infer(quick_serving, images(1)).status == 200
    reply = infer(quick_serving, np.full((1, 8, 8), 99, np.float32))
    assert (reply.status, reply.error[:9]) == (400, "rejected:")


def test_plans_go_with_their_version(quick_serving: Running, tmp_path: Path) -> None:
    infer(quick_serving, images(1), **BINARY)
    write_bundle(tmp_path / "slot-2", version=2, seed=2, cost_us=50)
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "slot-2"))
    assert memo(quick_serving) == {}
    for _ in range(2):
        head, tail = head_and_tail(infer(quick_serving, images(1), **BINARY))
        assert head["model_version"] == "2"
        assert tail[:40] == expected(quick_serving)["scores"].tobytes()


def test_values_of_a_plan_that_are_none_of_their_type_are_refused() -> None:
    """A byte of a BOOL is 0 or 1, in the second body as in the first."""
    entry = {"name": "x", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}
    head = json.dumps({"inputs": [entry]}).encode()
    plan = oip.plan(head, len(head) + 3)
    assert plan is not None
    assert plan.read(head + b"\0\1\0")["x"].tolist() == [False, True, False]
    with pytest.raises(BadRequest, match="a byte of 0 or 1"):
        plan.read(head + b"\0\2\0")


@pytest.mark.parametrize("count", [10, 5000], ids=["copied", "viewed"])
def test_tensors_of_a_plan_are_aligned(count: int) -> None:
    for padding in range(8):
        entry = {
            "name": "x" + "x" * padding,
            "shape": [count],
            "datatype": "FP64",
            "parameters": {"binary_data_size": 8 * count},
        }
        head = json.dumps({"inputs": [entry]}).encode()
        body = head + np.arange(count, dtype="<f8").tobytes()
        plan = oip.plan(head, len(body))
        assert plan is not None
        (array,) = plan.read(body).values()
        assert array.flags.aligned
        np.testing.assert_array_equal(array, np.arange(count))


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outputs", [[], ["label"], ["label", "scores"]])
def test_answers_through_a_form_are_those_without_but_for_their_id(
    outputs: list[str], quick_serving: Running
) -> None:
    """An id of the client's keeps its request from plan and form."""
    more = BINARY | ({"outputs": [{"name": name} for name in outputs]} if outputs else {})
    quick = [infer(quick_serving, images(2, seed), **more) for seed in (1, 2, 3)]
    for seed, reply in zip((1, 2, 3), quick, strict=True):
        head, _ = head_and_tail(reply)
        whole = infer(quick_serving, images(2, seed), id=head["id"], **more)
        assert reply.body == whole.body
        assert reply.headers == whole.headers
    assert len({head_and_tail(reply)[0]["id"] for reply in quick}) == 3


def test_a_connection_that_is_to_close_closes_after_an_answer_of_a_form(
    quick_serving: Running,
) -> None:
    for _ in range(2):
        reply = infer(quick_serving, images(1), {"Connection": "close"}, **BINARY)
        assert reply.headers["connection"] == "close"
        assert head_and_tail(reply)[0]["model_name"] == "digits"


_FIXED = ["BOOL", "UINT8", "INT16", "UINT32", "INT64", "FP16", "FP32", "FP64"]


@st.composite
def outputs(draw: st.DrawFn) -> Tensors:
    shape = (draw(st.integers(1, 3)), *draw(st.lists(st.integers(0, 4), max_size=2)))
    tensors: Tensors = {}
    for name in draw(st.lists(st.sampled_from("abc"), unique=True, min_size=1)):
        dtype = numpy_dtype(draw(st.sampled_from(_FIXED)))
        tensors[name] = draw(arrays.arrays(dtype, shape))
        if draw(st.booleans()):
            tensors[name] = np.asfortranarray(tensors[name])
    return tensors


def prediction(tensors: Tensors, prediction_id: str) -> Prediction:
    specs = tuple(
        TensorSpec(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        for name, array in tensors.items()
    )
    manifest = doubling(Doubling()).manifest.model_copy(update={"outputs": specs})
    made = Prediction(prediction_id, manifest, {}, 1, 0.0, lambda _: None)
    made.outputs = tensors
    return made


@settings(max_examples=150, deadline=None)
@given(outputs(), st.data())
def test_a_form_writes_what_the_encoder_would(tensors: Tensors, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(list(tensors)), unique=True))
    ask = oip.Ask(outputs=tuple((name, True) for name in wanted), binary=True)
    first, second = prediction(tensors, "0" * 12), prediction(dict(tensors), "f" * 12)
    form = oip.Form.of(oip.encode(ask, first), first, ask)
    assert form is not None
    answer = oip.encode(ask, second)
    parts = form.fill(second)
    assert parts is not None
    assert b"".join(parts) == b"".join(answer.parts)
    assert (form.length, form.head_length) == (sum(map(len, answer.parts)), answer.head_length)


def test_a_form_gives_way_to_another_shape_or_a_longer_id() -> None:
    ask = oip.Ask(binary=True)
    first = prediction({"a": np.zeros((1, 3), np.float32)}, "p1")
    form = oip.Form.of(oip.encode(ask, first), first, ask)
    assert form is not None
    assert form.fill(prediction({"a": np.zeros((3, 1), np.float32)}, "p2")) is None
    assert form.fill(prediction({"a": np.zeros((1, 3), np.float32)}, "p22")) is None
    assert form.fill(prediction({"a": np.zeros((1, 3), np.float32)}, "p2")) is not None


@pytest.mark.parametrize(
    ("array", "ask"),
    [
        (np.array([[b"a"]], object), oip.Ask(binary=True)),
        (np.zeros((1, 1), np.float32), oip.Ask()),
        (np.zeros((1, 1), np.float32), oip.Ask(binary=True, trace=True)),
    ],
    ids=["text", "JSON", "trace"],
)
def test_answers_without_a_fixed_length_have_no_form(array: Any, ask: oip.Ask) -> None:
    made = prediction({"a": array}, "p")
    assert oip.Form.of(oip.encode(ask, made), made, ask) is None


def test_a_form_does_not_mistake_another_part_of_the_head_for_the_id() -> None:
    """A client's id may be anything that JSON holds."""
    ask = oip.Ask(binary=True)
    for odd in ('"id":"', 'a"b', "\\", "é", '","outputs":['):
        made = prediction({"a": np.zeros((1, 1), np.float32)}, odd)
        form = oip.Form.of(oip.encode(ask, made), made, ask)
        if form is not None:
            other = prediction(made.outputs, "x" * len(odd.encode()))
            parts = form.fill(other)
            assert parts is None or b"".join(parts) == b"".join(oip.encode(ask, other).parts)


def test_outputs_whose_shape_changes_are_answered_right_each_time(
    quick_serving: Running, tmp_path: Path
) -> None:
    """As many rows of `above` as logits exceed 0: no form fits the next answer."""
    code = """
import numpy as np
from edge_agent.pipeline import service

@service("above")
def above(tensors):
    return {"above": np.argwhere(tensors["logits"] > 0).astype(np.int64)}
"""
    manifest = write_bundle(
        tmp_path / "slot",
        version=2,
        steps=(*STEPS[:5], StepSpec(name="above")),
        code={"steps.py": code},
        with_golden=False,
        cost_us=50,
    )
    above = TensorSpec(name="above", datatype="INT64", shape=(-1, 2))
    alter(tmp_path / "slot", manifest, outputs=(above,))
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "slot"))
    pipeline = quick_serving.plane.models["digits"].pipeline
    lengths = set()
    for seed in (1, 2, 3, 1):
        head, tail = head_and_tail(infer(quick_serving, images(1, seed), **BINARY))
        answer = pipeline.run({"image": images(1, seed)}).tensors["above"]
        assert head["outputs"][0]["shape"] == list(answer.shape)
        assert tail == answer.tobytes()
        lengths.add(len(tail))
    assert len(lengths) > 1


# ── traces ───────────────────────────────────────────────────────────────────────────────────────


TRACE: dict[str, object] = {"parameters": {"trace": True}}


def test_a_trace_is_for_the_administrative_socket(quick_serving: Running) -> None:
    refused = quick_serving.ask("POST", INFER, json_request(1, **TRACE))
    assert refused.status == 403
    assert "trace" in refused.error
    assert quick_serving.observed == []
    reply = quick_serving.ask_unix(quick_serving.unix_path, "POST", INFER, json_request(1, **TRACE))
    assert reply.status == 200


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
def test_a_trace_carries_what_every_step_made(binary: bool, tmp_path: Path) -> None:
    more: dict[str, object] = {"parameters": {"trace": True, "binary_data_output": binary}}
    with served(tmp_path, debug=True) as running:
        result = running.plane.models["digits"].pipeline.run({"image": images(2)}, trace=True)
        for _ in range(2):  # a plan must not lose it
            reply = infer(running, images(2), **more)
            if binary:
                head, tail = head_and_tail(reply)
            else:
                head, tail = reply.json, b""
            answered: Tensors = {}
            for output in head["outputs"]:
                dtype = numpy_dtype(output["datatype"])
                if binary:
                    size = output["parameters"]["binary_data_size"]
                    array, tail = np.frombuffer(tail[:size], dtype), tail[size:]
                else:
                    array = np.array(output["data"], dtype)
                answered[output["name"]] = array.reshape(output["shape"])
            wanted = dict(result.tensors)
            for index, (step, made) in enumerate(result.steps):
                wanted |= {f"step:{index}:{step}:{name}": array for name, array in made.items()}
            assert list(answered) == list(wanted)
            assert "step:2:scale:image" in wanted and "step:4:model:logits" in wanted
            for name, array in wanted.items():
                assert answered[name].dtype == array.dtype
                np.testing.assert_array_equal(answered[name], array)
        assert memo(running)


def test_a_request_without_a_trace_gets_none(tmp_path: Path) -> None:
    with served(tmp_path, debug=True) as running:
        infer(running, images(1), **TRACE)
        reply = infer(running, images(1))
        assert [output["name"] for output in reply.json["outputs"]] == ["scores", "label"]


@pytest.mark.parametrize(
    ("name", "value", "status", "message"),
    [
        (
            "spectrum",
            "np.fft.fft2(tensors['x'])",
            400,
            "output 'spectrum': dtype complex64 has no datatype name",
        ),
        ("caf\\udce9", "tensors['x']", 500, "internal error"),
    ],
    ids=["type", "name"],
)
def test_a_trace_that_cannot_be_written_is_an_error_not_silence(
    name: str, value: str, status: int, message: str, tmp_path: Path
) -> None:
    """The client would wait for ever."""
    code = f"""
import numpy as np
from edge_agent.pipeline import processor

@processor("spectrum")
def spectrum(tensors):
    return {{**tensors, "{name}": {value}}}
"""
    steps = (*STEPS[:4], StepSpec(name="spectrum"), *STEPS[4:])
    write_bundle(tmp_path / "odd", version=2, steps=steps, code={"steps.py": code}, cost_us=50)
    with served(tmp_path, debug=True) as running:
        running.plane.install("digits", ServedModel.load(tmp_path / "odd"))
        assert infer(running, images(1)).status == 200
        reply = infer(running, images(1), **TRACE)
        assert (reply.status, reply.error) == (status, message)


# ── compression ──────────────────────────────────────────────────────────────────────────────────


def undone(reply: Reply) -> bytes:
    """The body without its encoding."""
    match reply.headers.get("content-encoding"):
        case "gzip":
            return gzip.decompress(reply.body)
        case "deflate":
            return zlib.decompress(reply.body)
        case _:
            return reply.body


@pytest.mark.parametrize("count", [100, 5000], ids=["small", "in a thread"])
@pytest.mark.parametrize(
    ("offered", "used"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, gzip, deflate", "gzip"),
        ("GZIP", "gzip"),
        ("br", None),
        ("identity", None),
    ],
)
def test_answers_are_compressed_as_the_client_likes(
    offered: str, used: str | None, count: int, quick_serving: Running
) -> None:
    plain, *replies = [
        infer(quick_serving, images(count), headers, id="same", **BINARY)
        for headers in ({}, {"Accept-Encoding": offered}, {"Accept-Encoding": offered})
    ]
    for reply in replies:
        assert reply.headers.get("content-encoding") == used
        assert undone(reply) == plain.body
        assert int(reply.headers["content-length"]) == len(reply.body)
        length = "inference-header-content-length"  # speaks of the body without the encoding
        assert reply.headers[length] == plain.headers[length]


def test_an_answer_that_has_a_form_is_compressed_too(quick_serving: Running) -> None:
    plain = [infer(quick_serving, images(100), **BINARY) for _ in range(2)]
    for _ in range(2):
        reply = infer(quick_serving, images(100), {"Accept-Encoding": "gzip"}, **BINARY)
        assert reply.headers["content-encoding"] == "gzip"
        length = int(reply.headers["inference-header-content-length"])
        assert undone(reply)[length:] == head_and_tail(plain[0])[1]
    after = infer(quick_serving, images(100), **BINARY)
    assert head_and_tail(after)[1] == head_and_tail(plain[1])[1]


def test_a_short_answer_is_not_compressed(quick_serving: Running) -> None:
    reply = infer(quick_serving, images(1), {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
@pytest.mark.parametrize("count", [1, 2000], ids=["small", "in a thread"])
def test_compressed_bodies_are_read_large_or_small(
    compress: Any, count: int, quick_serving: Running
) -> None:
    values = np.random.default_rng(0).uniform(0, 16, (count, 8, 8)).astype(np.float32)
    body, headers = binary_request(count, **BINARY)
    body = body[: int(headers["Inference-Header-Content-Length"])] + values.tobytes()
    encoding = {"Content-Encoding": "gzip" if compress is gzip.compress else "deflate"}
    plain = quick_serving.ask("POST", INFER, body, headers)
    reply = quick_serving.ask("POST", INFER, compress(body), headers | encoding)
    assert head_and_tail(reply)[1] == head_and_tail(plain)[1]


def test_a_large_body_that_does_not_inflate_is_refused(quick_serving: Running) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    reply = quick_serving.ask("POST", INFER, noise, {"Content-Encoding": "gzip"})
    assert reply.status == 400
    assert "not gzip" in reply.error
    cut = gzip.compress(noise)[:-20]
    reply = quick_serving.ask("POST", INFER, cut, {"Content-Encoding": "gzip"})
    assert (reply.status, reply.error) == (400, "the gzip body is cut short")


# ── time, and clients and versions that go ───────────────────────────────────────────────────────


def test_a_request_whose_timeout_passes_is_503(quick_serving: Running, tmp_path: Path) -> None:
    model, gate = gated(tmp_path)
    quick_serving.plane.install("digits", model)
    replies: dict[str, Reply] = {}

    def ask(name: str, **more: object) -> threading.Thread:
        def wait() -> None:
            replies[name] = quick_serving.ask("POST", INFER, json_request(1, **more))

        client = threading.Thread(target=wait)
        client.start()
        return client

    first = ask("first")
    assert gate.entered.acquire(timeout=5)
    late = ask("late", parameters={"timeout": 30_000})
    until(lambda: model.waiting == 1)
    time.sleep(0.04)
    gate.open.set()
    first.join()
    late.join()
    assert (replies["first"].status, replies["late"].status) == (200, 503)
    assert replies["late"].error == "model 'digits' did not come to the request within its timeout"
    text = quick_serving.ask("GET", "/metrics").body.decode()
    assert 'outcome="expired"} 1' in text and 'skerry_errors_total{type="Expired"} 1' in text


def test_a_request_that_cannot_be_in_time_is_503_at_once(
    quick_serving: Running, tmp_path: Path
) -> None:
    model, _ = gated(tmp_path, cost_us=2e6)
    quick_serving.plane.install("digits", model)
    request = json_request(1, parameters={"timeout": 1_000_000})
    reply = quick_serving.ask("POST", INFER, request)
    assert (reply.status, reply.headers["retry-after"]) == (503, "3")


@pytest.mark.parametrize("timeout", [-1, 1.5, True, "soon", [1]])
def test_a_timeout_is_a_whole_number_of_microseconds(
    timeout: object, quick_serving: Running
) -> None:
    reply = quick_serving.ask("POST", INFER, json_request(1, parameters={"timeout": timeout}))
    assert (reply.status, "'timeout'" in reply.error) == (400, True)


def test_a_client_that_has_gone_is_not_computed(quick_serving: Running) -> None:
    network = Doubling(held=True)
    model = doubling(network, cost=CostModel(per_item_us=0, fixed_us=1000, max_batch=8))
    quick_serving.plane.install("m", model)

    def ask(value: float) -> socket.socket:
        x = np.full((1, 2), value, np.float32)
        request = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [request]}).encode()
        client = socket.create_connection(("127.0.0.1", quick_serving.port), timeout=10)
        client.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        return client

    with ask(1.0) as first:
        assert network.entered.acquire(timeout=5)
        gone, stays = ask(2.0), ask(3.0)
        until(lambda: model.waiting == 2)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()  # with a reset; an end of its stream alone says only that nothing more comes
        until(lambda: len(quick_serving.server._connections) == 2)
        network.open.set()
        assert b" 200 " in first.recv(4096)
        with stays:
            assert b'"data":[6.0,6.0]' in stays.recv(4096)
    assert network.batches == [1, 1]


def test_a_request_that_was_being_inflated_is_answered_by_the_version_that_serves_then(
    quick_serving: Running, tmp_path: Path
) -> None:
    """The version it began with may be closed by then."""
    write_bundle(tmp_path / "slot-2", version=2, cost_us=50)
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "slot-2"))
    infer(quick_serving, images(1))  # opens the lane
    model = quick_serving.plane.models["digits"]
    values = np.random.default_rng(0).uniform(0, 16, (2000, 8, 8)).astype(np.float32)
    body, headers = binary_request(2000)
    body = body[: int(headers["Inference-Header-Content-Length"])] + values.tobytes()
    replies: list[Reply] = []
    go_on = threading.Event()
    side = quick_serving.server._routes._inference._side
    side.submit(go_on.wait, 10)  # the one thread that inflates is busy
    client = threading.Thread(
        target=lambda: replies.append(
            quick_serving.ask(
                "POST", INFER, gzip.compress(body), headers | {"Content-Encoding": "gzip"}
            )
        )
    )
    client.start()
    until(lambda: side._work_queue.qsize() == 1)
    quick_serving.plane.revert("digits")
    until(lambda: model._closed)
    go_on.set()
    client.join()
    assert replies[0].status == 200, replies[0].body
    assert replies[0].json["model_version"] == "1"
