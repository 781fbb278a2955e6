"""Requests that are HTTP but no inference: each is refused in one line, and nobody else notices.

Every case runs beside a well-behaved neighbour and must leave no connection and no task behind.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvloop

from edge_agent.serve.oip import MAX_BODY_BYTES
from tests.runtime.networks import images

from .clients import (
    INFER,
    Neighbour,
    Received,
    binary_body,
    exchange,
    json_body,
    post,
    resident_bytes,
    watched,
)
from .conftest import Running, serve

ONE = images(1).tobytes()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve(uvloop.new_event_loop(), tmp_path_factory.mktemp("hostile"))


@pytest.fixture(autouse=True)
def neighbour(running: Running) -> Iterator[Neighbour]:
    with watched(running) as other:
        yield other


def ask(running: Running, body: bytes, *headers: bytes, target: str = INFER) -> Received:
    (answer,) = exchange(running, post(body, *headers, target=target))
    return answer


def tensor(**changes: object) -> dict[str, object]:
    """A right request for one item, changed; a value of None takes the key away."""
    entry = {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [0] * 64} | changes
    return {"inputs": [{key: value for key, value in entry.items() if value is not None}]}


def counted(running: Running, needle: str) -> float:
    """The sum of all samples of /metrics whose line holds `needle`."""
    (answer,) = exchange(running, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.status == 200
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if needle in line)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/models/other/infer",
        "/v2/models//infer",
        "/v2/models/digits/versions/2/infer",
        "/v2/models/digits/versions/01/infer",
        "/v2/models/digits/versions/-1/infer",
        "/v2/models/digits/versions//infer",
        "/v2/models/digits/versions/1/versions/1/infer",
        "/v2/models/digits%2Finfer/infer",
        "/v2/models/digits%00/infer",
        "/v2/models/%ff%fe/infer",
        "/v2/models/%ED%A0%80/infer",
        "/v2/models/%zz/infer",
        "/v2/models/../models/digits/infer",
        "/v2/models/" + "d" * 10_000 + "/infer",
        "/v2/models/digits/nothing",
    ],
    ids=lambda target: target[:40],
)
def test_a_wrong_model_or_version_is_not_found(target: str, running: Running) -> None:
    answer = ask(running, json_body(), target=target)
    assert answer.status == 404
    assert answer.error


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (tensor(name="imgae"), "image"),
        (tensor(name=""), "image"),
        (tensor(name=None), "name"),
        (tensor(name="\ud800"), ""),
        (tensor(name="im\nage\x00"), ""),
        (tensor(datatype="FP64"), "FP32"),
        (tensor(datatype="fp32"), "fp32"),
        (tensor(datatype=None), "datatype"),
        (tensor(datatype="BYTES", data=["a"] * 64), "FP32"),
        (tensor(shape=[1, 8, 9], data=[0] * 72), "[-1, 8, 8]"),
        (tensor(shape=[8, 8]), "[-1, 8, 8]"),
        (tensor(shape=[]), ""),
        (tensor(shape=None), "shape"),
        (tensor(shape=[1, 8, -8]), "shape"),
        (tensor(shape=[1, 8, 8.0]), ""),
        (tensor(shape=[2**64, 8, 8]), ""),
        (tensor(shape=[10**400, 8, 8]), ""),
        (tensor(shape=[1] * 100_000), "shape"),
        (tensor(data=[0] * 65), "65 values"),
        (tensor(data=[]), "0 values"),
        (tensor(data={}), "image"),
        (tensor(data=[[[[0] * 8] * 8]]), "image"),
        (tensor(data=[True] * 64), "image"),
        (tensor(data=["0"] * 64), "image"),
        (tensor(data=[10**400] * 64), "image"),
        (tensor(data=[3.5e38] * 64), "image"),
        (tensor(parameters=[]), ""),
        (tensor(parameters={"binary_data_size": 256}), "256"),
        (tensor() | {"id": 5}, "id"),
        (tensor() | {"id": "i" * 5000}, "id"),
        (tensor() | {"id": None}, "id"),
        (tensor() | {"outputs": [{"name": "nope"}]}, "nope"),
        (tensor() | {"outputs": [{"name": "n" * 100_000}]}, ""),
        (tensor() | {"outputs": [{}]}, "name"),
        (tensor() | {"outputs": {}}, ""),
        (tensor() | {"parameters": {"timeout": -1}}, "timeout"),
        (tensor() | {"parameters": {"timeout": "soon"}}, "timeout"),
        (tensor() | {"parameters": {"timeout": 1.5}}, "timeout"),
        (tensor() | {"parameters": {"timeout": True}}, "timeout"),
        ({"inputs": [tensor()["inputs"][0]] * 2}, "image"),  # type: ignore[index]
        ({"inputs": []}, "image"),
        ({"inputs": None}, "inputs"),
        ({}, "inputs"),
        ([], ""),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict | list) else "",
)
def test_a_wrong_request_is_a_bad_request(request_: object, message: str, running: Running) -> None:
    answer = ask(running, json.dumps(request_).encode())
    assert answer.status == 400
    assert message in answer.error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"inputs": [',
        b"null",
        b"0",
        b'"text"',
        json_body()[:-1],
        json_body() + b"x",
        json_body() + json_body(),
        b"\xef\xbb\xbf" + json_body(),
        json_body().decode().encode("utf-16"),
        json_body(id="\xe9").decode().encode().replace(rb"\u00e9", b"\xe9"),
        json_body(id="\xe9").decode().encode().replace(rb"\u00e9", b"\xed\xa0\x80"),
        b'{"inputs": ' + b"[" * 1_000_000,
        b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        json_body()[:-1] + b', "parameters": ' + b'{"a":' * 90_000 + b"1" + b"}" * 90_001,
        json.dumps(tensor(data="DATA")).replace('"DATA"', "[" * 90_000 + "]" * 90_000).encode(),
        json.dumps(tensor(data="DATA")).replace('"DATA"', "[" + "9" * 1_000_000 + "]").encode(),
        json.dumps(tensor(data="DATA")).replace('"DATA"', "[1e999999999]").encode(),
        json.dumps(tensor(data="DATA")).replace('"DATA"', "[NaN]").encode(),
        json.dumps(tensor(data=[float("nan")] * 64)).encode(),
        json.dumps(tensor(data=[float("-inf")] * 64)).encode(),
        b"\0" * 1000,
    ],
    ids=lambda body: repr(body[:24]) + f"…{len(body)}",
)
def test_broken_json_is_a_bad_request(body: bytes, running: Running) -> None:
    answer = ask(running, body)
    assert answer.status == 400
    assert answer.error


@pytest.mark.parametrize(
    ("data", "shape", "size", "message"),
    [
        (ONE[:-1], [1, 8, 8], None, "255 bytes"),
        (ONE + b"\0", [1, 8, 8], None, "257 bytes"),
        (ONE, [2, 8, 8], None, "256 bytes"),
        (b"", [1, 8, 8], None, "0 bytes"),
        (ONE, [1, 8, 8], 257, "257"),
        (ONE, [1, 8, 8], 255, "255"),
        (ONE, [1, 8, 8], 0, "0 bytes"),
        (ONE, [1, 8, 8], -256, "-256"),
        (ONE, [1, 8, 8], 2**63, ""),
        (ONE, [1, 8, 8], 10**30, ""),
        (ONE, [1, 8, 8], 256.0, "256"),
        (ONE, [1, 8, 8], "256", "256"),
        (ONE, [1, 8, 8], [256], "256"),
        (ONE[:1], [1], True, ""),
        (ONE, [2**31, 2**31, 2**31], None, ""),
        (b"", [0, 8, 8], 0, ""),
        (b"", [0, 2**63], 0, ""),
        (b"", [0, 2**40, 2**40], 0, ""),
    ],
)
def test_binary_that_does_not_fit_is_a_bad_request(
    data: bytes, shape: list[int], size: object, message: str, running: Running
) -> None:
    body, header = binary_body(data, shape, size=size)
    answer = ask(running, body, header)
    assert answer.status == 400
    assert message in answer.error


@pytest.mark.parametrize("datatype", ["FP16", "INT8", "BOOL", "BYTES", "BF16", "FP64"])
def test_binary_of_another_datatype_is_a_bad_request(datatype: str, running: Running) -> None:
    body, header = binary_body(ONE, [1, 8, 8], datatype=datatype)
    assert ask(running, body, header).status == 400


@pytest.mark.parametrize("offset", range(8))
def test_binary_at_any_alignment_is_read_right(offset: int, running: Running) -> None:
    plain, _ = binary_body(ONE, [1, 8, 8])
    padding = " " * ((offset - len(plain)) % 8)
    head = json.dumps(json.loads(plain[: -len(ONE)])).encode() + padding.encode()
    answer = ask(running, head + ONE, b"Inference-Header-Content-Length: %d" % len(head))
    expected = running.plane.models["digits"].pipeline.run({"image": images(1)}).tensors
    assert answer.json["outputs"][1]["data"] == expected["label"].tolist()


@pytest.mark.parametrize(
    "value",
    [
        "0", "1", "-1", "+5", "5.0", "0x10", "1e3", " ", "", "nan", "five", "１",
        "99999999", str(2**31), str(2**63), str(2**64), "9" * 5000, "1, 2", "-0",
    ],
    ids=lambda value: value[:20] or "empty",
)  # fmt: skip
def test_a_head_length_that_lies_is_a_bad_request(value: str, running: Running) -> None:
    body, _ = binary_body(ONE, [1, 8, 8])
    answer = ask(running, body, b"Inference-Header-Content-Length: " + value.encode())
    assert answer.status == 400
    assert answer.error


def test_a_head_length_given_twice_is_a_bad_request_or_the_same_twice(running: Running) -> None:
    body, header = binary_body(ONE, [1, 8, 8])
    assert ask(running, body, header, b"Inference-Header-Content-Length: 7").status == 400


def test_a_head_that_ends_within_the_tensor_is_a_bad_request(running: Running) -> None:
    body, header = binary_body(ONE, [1, 8, 8])
    length = int(header.rpartition(b" ")[2])
    for wrong in (length - 1, length + 1, len(body), len(body) + 1):
        answer = ask(running, body, b"Inference-Header-Content-Length: %d" % wrong)
        assert answer.status == 400, wrong


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_a_checker_forbids_is_refused_by_its_reason_and_counted(
    bad: float, running: Running
) -> None:
    values = images(3)
    values[2, 4, 4] = bad
    body, header = binary_body(values.tobytes(), [3, 8, 8])
    before = counted(running, "not_finite")
    answer = ask(running, body, header)
    assert answer.status == 400
    assert "not_finite" in answer.error
    assert counted(running, "not_finite") == before + 1


def test_values_out_of_range_are_counted_under_a_reason_of_their_own(running: Running) -> None:
    before = counted(running, "out_of_range"), counted(running, "not_finite")
    assert "out_of_range" in ask(running, json.dumps(tensor(data=[17] * 64)).encode()).error
    assert (counted(running, "out_of_range"), counted(running, "not_finite")) == (
        before[0] + 1,
        before[1],
    )


@pytest.mark.parametrize("copies", [2, 1000, 50_000])
def test_an_output_wanted_many_times_does_not_multiply_the_answer(
    copies: int, running: Running
) -> None:
    """A few bytes of request for each copy of an output would fill the memory."""
    before = resident_bytes()
    answer = ask(running, json_body(64, outputs=[{"name": "scores"}] * copies))
    assert answer.status == 400
    assert answer.error
    assert resident_bytes() - before < 64 << 20


def test_many_inputs_are_refused_promptly(running: Running, neighbour: Neighbour) -> None:
    entries: list[Any] = [
        {"name": f"n{index}", "shape": [1], "datatype": "FP32", "data": [0]}
        for index in range(50_000)
    ]
    assert ask(running, json.dumps({"inputs": entries}).encode()).status == 400
    neighbour.ask()


@pytest.mark.parametrize("route", ["infer", "predict"])
def test_an_unknown_input_of_megabytes_is_refused_promptly(route: str, running: Running) -> None:
    name = "image" * 800_000
    if route == "infer":
        entry: Any = tensor()["inputs"][0]  # type: ignore[index]
        request: object = {"inputs": [entry, entry | {"name": name}]}
    else:
        request = {"inputs": {"image": images(1).tolist(), name: 0}}
    body = json.dumps(request).encode()
    start = time.monotonic()
    answer = ask(running, body, target=f"/v2/models/digits/{route}")
    assert answer.status == 400
    assert "unknown input" in answer.error
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b'"text"', b"\xff", b"<svg/>", b"GIF89a", b"[" * 100_000,
        b'{"a":' * 100_000, b'{"instances": []}', b'{"instances": [1]}', b'{"instances": [[NaN]]}',
        b'{"instances": ' + b"[" * 100_000, b'{"inputs": {"image": null}}',
        b'{"inputs": {"image": [[[1e400]]]}}', b'{"inputs": {}, "instances": []}',
        b'{"instances": [' + b"{}," * 100_000 + b"{}]}", b'{"id": "\\ud800", "instances": [1]}',
        b'{"parameters": {"timeout": -1}, "instances": [[[0]]]}',
    ],
    ids=lambda body: f"{body[:24]!r} {len(body)}",
)  # fmt: skip
@pytest.mark.parametrize("kind", [b"application/json", b"image/png", b"text/plain", b""])
def test_a_task_that_is_not_understood_is_a_bad_request(
    body: bytes, kind: bytes, running: Running
) -> None:
    answer = ask(running, body, b"Content-Type: " + kind, target="/v2/models/digits/predict")
    assert answer.status == 400
    assert answer.error


@pytest.mark.parametrize("key", ["name", "datatype"])
def test_a_word_of_megabytes_is_refused_promptly_and_not_repeated(
    key: str, running: Running
) -> None:
    word = "".join(chr(97 + index % 26) for index in range(2_000_000))
    answer = ask(running, json.dumps(tensor(**{key: word})).encode())
    assert answer.status == 400
    assert len(answer.error) < 2000


def test_a_label_or_id_of_megabytes_is_refused_promptly(running: Running) -> None:
    target = "/v2/models/digits/feedback"
    for given in ({"id": "i" * 4_000_000, "label": "3"}, {"id": "i", "label": "3" * 4_000_000}):
        answer = ask(running, json.dumps(given).encode(), target=target)
        assert answer.status == 400
        assert answer.error
    assert not running.feedback


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"id": 1, "label": "3"}', b'{"id": "a"}', b"\xff", b"[" * 9999],
    ids=lambda body: repr(body[:24]),
)
def test_wrong_feedback_is_a_bad_request(body: bytes, running: Running) -> None:
    answer = ask(running, body, target="/v2/models/digits/feedback")
    assert answer.status == 400
    assert answer.error
    assert not running.feedback


def bomb(encoding: str) -> bytes:
    """A hundred megabytes of zeros in a hundred kilobytes, made in pieces."""
    engine = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
    piece = b"\0" * (1 << 20)
    parts = [engine.compress(piece) for _ in range(100)]
    return b"".join([*parts, engine.flush()])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_before_it_is_unpacked(encoding: str, running: Running) -> None:
    body = bomb(encoding)
    before = resident_bytes()
    answer = ask(running, body, f"Content-Encoding: {encoding}".encode())
    assert answer.status == 413
    assert str(MAX_BODY_BYTES) in answer.error
    assert resident_bytes() - before < 4 * MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"", "gzip"),
        (b"\x1f\x8b", "gzip"),
        (gzip.compress(json_body())[:-4], "gzip"),
        (gzip.compress(json_body()) + b"tail", "gzip"),
        (bytes([*gzip.compress(json_body())[:40], 7, 7, 7]), "gzip"),
        (json_body(), "deflate"),
        (gzip.compress(gzip.compress(json_body())), "gzip"),
        (gzip.compress(json_body()), "br"),
        (gzip.compress(json_body()), "gzip, gzip"),
        (gzip.compress(json_body()), "\xff"),
        (gzip.compress(json_body()), "g" * 5000),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_damaged_or_foreign_encoding_is_a_bad_request(
    body: bytes, encoding: str, running: Running
) -> None:
    answer = ask(running, body, b"Content-Encoding: " + encoding.encode("latin-1"))
    assert answer.status in (400, 415)
    assert answer.error
