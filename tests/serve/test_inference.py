"""What the routes that predict do around a prediction: traces, compression, time."""

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

from edge_agent.runtime import Tensors, numpy_dtype
from edge_agent.serve import ServedModel
from edge_agent.wire.manifest import CostModel, StepSpec
from tests.runtime.networks import STEPS, images, write_bundle

from .asking import BINARY, head_and_tail, infer
from .conftest import Reply, Running, served, until
from .gates import Doubling, doubling, gated
from .test_protocol import INFER, binary_request, json_request

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
        assert running.plane.models["digits"].memo


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


@pytest.mark.parametrize("count", [100, 4000], ids=["small", "in a thread"])
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
    assert replies["late"].headers["retry-after"] == "1"
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
    assert (reply.status, int(reply.headers["retry-after"]) >= 2) == (503, True)


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
    side._executor.submit(go_on.wait, 10)  # the one thread that inflates is busy
    client = threading.Thread(
        target=lambda: replies.append(
            quick_serving.ask(
                "POST", INFER, gzip.compress(body), headers | {"Content-Encoding": "gzip"}
            )
        )
    )
    client.start()
    until(lambda: side.waiting == 1)
    quick_serving.plane.revert("digits")
    until(lambda: model._closed)
    go_on.set()
    client.join()
    assert replies[0].status == 200, replies[0].body
    assert replies[0].json["model_version"] == "1"
