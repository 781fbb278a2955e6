"""Tensors of every datatype through a server that echoes them, and bodies that nobody meant.

The client's side of the encoding is written here a second time, on purpose.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto

from edge_agent.serve import ServedModel
from edge_agent.wire.manifest import Datatype, Manifest, ModelSpec, StepSpec, TensorSpec
from tests.runtime.networks import write_echo

from .clients import INFER, json_body, watched
from .conftest import Reply, Running, send, serve

ONNX = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING, "BF16": TensorProto.BFLOAT16,
}  # fmt: skip
NUMPY = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    "BF16": "<u2",
}  # fmt: skip
BINARY_ONLY = {"FP16", "BF16"}

PROFILE = settings(max_examples=15, deadline=None, derandomize=True)


def write_echo_bundle(directory: Path, datatype: str) -> None:
    directory.mkdir()
    write_echo(directory / "model.onnx", ONNX[datatype])
    x = TensorSpec.model_validate({"name": "x", "datatype": datatype, "shape": (-1, 3)})
    y = x.model_copy(update={"name": "y"})
    manifest = Manifest(
        model=f"echo-{datatype.lower()}",
        version=1,
        profile="this-machine",
        variant="echo",
        inputs=(x,),
        outputs=(y,),
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=(x,), outputs=(y,)),
        files=(),
    )
    (directory / "manifest.json").write_bytes(manifest.encode())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The digits, and an echo for each datatype."""
    directory = tmp_path_factory.mktemp("codec")
    for running in serve(uvloop.new_event_loop(), directory):
        for datatype in get_args(Datatype):
            write_echo_bundle(directory / datatype, datatype)
            running.plane.install(
                f"echo-{datatype.lower()}", ServedModel.load(directory / datatype)
            )
        yield running


@pytest.fixture(scope="module")
def line(running: Running) -> Iterator[http.client.HTTPConnection]:
    connection = running.connect()
    yield connection
    connection.close()


def tensors(datatype: str) -> st.SearchStrategy[Any]:
    """Batches of three elements each; texts as a list of rows."""
    shape = st.tuples(st.integers(1, 5), st.just(3))
    if datatype == "BYTES":
        text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
        rows = st.lists(st.lists(text, min_size=3, max_size=3), min_size=1, max_size=5)
        return rows.map(lambda values: np.array(values, dtype=object))
    return arrays.arrays(np.dtype(NUMPY[datatype]), shape)


def to_wire(datatype: str, array: Any) -> bytes:
    if datatype != "BYTES":
        return bytes(array.tobytes())
    words = [word.encode() for word in array.ravel()]
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


def ask(
    line: http.client.HTTPConnection, datatype: str, array: Any, binary_in: bool, binary_out: bool
) -> Reply:
    entry: dict[str, object] = {"name": "x", "shape": list(array.shape), "datatype": datatype}
    wanted = [{"name": "y", "parameters": {"binary_data": binary_out}}]
    tail = b""
    if binary_in:
        tail = to_wire(datatype, array)
        entry["parameters"] = {"binary_data_size": len(tail)}
    else:
        entry["data"] = array.ravel().tolist()
    head = json.dumps({"inputs": [entry], "outputs": wanted}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary_in else {}
    return send(line, "POST", f"/v2/models/echo-{datatype.lower()}/infer", head + tail, headers)


def answered(reply: Reply) -> tuple[dict[str, Any], bytes]:
    assert reply.status == 200, reply.body[:300]
    length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    (output,) = json.loads(reply.body[:length])["outputs"]
    return output, reply.body[length:]


def same_bits(datatype: str, sent: bytes, got: bytes) -> bool:
    """Equal, but for the payload of a NaN."""
    if datatype not in ("FP16", "FP32", "FP64", "BF16"):
        return sent == got
    if datatype == "BF16":
        one, other = (
            (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4") for data in (sent, got)
        )
    else:
        one, other = (np.frombuffer(data, NUMPY[datatype]) for data in (sent, got))
    return bool(
        np.array_equal(one, other, equal_nan=True)
        and np.array_equal(np.signbit(one[one == 0]), np.signbit(other[other == 0]))
    )


@pytest.mark.parametrize("datatype", get_args(Datatype))
def test_every_datatype_comes_back_in_binary_bit_by_bit(
    datatype: str, line: http.client.HTTPConnection
) -> None:
    @PROFILE
    @given(tensors(datatype))
    def check(array: Any) -> None:
        output, tail = answered(ask(line, datatype, array, True, True))
        assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
        assert output["parameters"]["binary_data_size"] == len(tail)
        assert same_bits(datatype, to_wire(datatype, array), tail)

    check()


@pytest.mark.parametrize("datatype", [d for d in get_args(Datatype) if d not in BINARY_ONLY])
@pytest.mark.parametrize("binary_in", [False, True], ids=["json", "binary"])
def test_every_datatype_of_json_comes_back_in_json(
    datatype: str, binary_in: bool, line: http.client.HTTPConnection
) -> None:
    @PROFILE
    @given(tensors(datatype))
    def check(array: Any) -> None:
        if datatype.startswith("FP"):
            array = np.nan_to_num(array, nan=0.5, posinf=1.0, neginf=-1.0)
        output, tail = answered(ask(line, datatype, array, binary_in, False))
        assert tail == b""
        assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
        assert np.array_equal(np.array(output["data"], array.dtype), array.ravel())

    check()


@pytest.mark.parametrize("datatype", sorted(BINARY_ONLY))
def test_what_json_cannot_carry_is_refused_in_json(
    datatype: str, line: http.client.HTTPConnection
) -> None:
    array = np.ones((1, 3), NUMPY[datatype])
    for binary_in, binary_out in ((False, True), (True, False)):
        reply = ask(line, datatype, array, binary_in, binary_out)
        assert reply.status == 400
        assert "binary only" in reply.error


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_what_is_no_number_is_null_in_json(datatype: str, line: http.client.HTTPConnection) -> None:
    array = np.array([[np.nan, np.inf, -np.inf]], NUMPY[datatype])
    output, _ = answered(ask(line, datatype, array, True, False))
    assert output["data"] == [None, None, None]


def test_bytes_that_are_no_text_are_refused_not_mangled(line: http.client.HTTPConnection) -> None:
    """A network's strings are text; others cannot pass it unchanged."""
    tail = b"".join(struct.pack("<I", 2) + b"\xff\xfe" for _ in range(3))
    entry = {
        "name": "x",
        "shape": [1, 3],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail)},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = send(line, "POST", "/v2/models/echo-bytes/infer", head + tail, headers)
    assert reply.status in (400, 500)
    assert reply.error


OUT_OF_RANGE = [
    ("BOOL", [0, 1, 2]),
    ("BOOL", ["true"] * 3),
    *[(f"UINT{bits}", [0, 0, 2**bits]) for bits in (8, 16, 32, 64)],
    *[(f"UINT{bits}", [0, 0, -1]) for bits in (8, 16, 32, 64)],
    *[(f"INT{bits}", [0, 0, 2 ** (bits - 1)]) for bits in (8, 16, 32, 64)],
    *[(f"INT{bits}", [0, 0, -(2 ** (bits - 1)) - 1]) for bits in (8, 16, 32, 64)],
    ("INT32", [0, 0, 0.5]),
    ("INT32", [0, 0, True]),
    ("INT32", [0, 0, None]),
    ("FP32", [0, 0, 1e39]),
    ("FP32", [0, 0, "1"]),
    ("FP64", [0, 0, True]),
    ("BYTES", ["a", "b", 3]),
    ("BYTES", ["a", "b", None]),
]


@pytest.mark.parametrize(("datatype", "values"), OUT_OF_RANGE, ids=str)
def test_a_number_that_does_not_fit_is_refused_not_wrapped(
    datatype: str, values: list[object], line: http.client.HTTPConnection
) -> None:
    entry = {"name": "x", "shape": [1, 3], "datatype": datatype, "data": values}
    reply = send(line, "POST", f"/v2/models/echo-{datatype.lower()}/infer", {"inputs": [entry]})
    assert reply.status == 400, reply.body
    assert "'x'" in reply.error


# ── bodies that nobody meant ─────────────────────────────────────────────────────────────────────

numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.integers(-3, 300))
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
datatypes = st.sampled_from([*get_args(Datatype), "FP8", "", "fp32"]) | junk
shapes = st.lists(st.integers(-2, 9) | st.sampled_from([2**31, 2**63, 2**64]), max_size=9) | junk
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "timeout", "trace"]),
    junk,
    max_size=3,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "image", ""]) | junk,
        "shape": shapes,
        "datatype": datatypes,
        "parameters": parameters | junk,
        "data": st.lists(numbers, max_size=6) | junk,
        "extra": junk,
    },
)
wanted = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["y", "x"]) | junk, "parameters": parameters | junk}
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(entries, max_size=3) | junk,
        "outputs": st.lists(wanted, max_size=3) | junk,
        "id": st.text(max_size=70) | junk,
        "parameters": parameters | junk,
    },
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    bodies,
    st.binary(max_size=40),
    st.sampled_from(["none", "right", "0", "1", "999999"]),
    st.sampled_from(["echo-fp32", "echo-bytes", "echo-bool", "digits"]),
)
def test_no_body_gets_more_than_a_clear_refusal(
    line: http.client.HTTPConnection, body: dict[str, Any], tail: bytes, length: str, model: str
) -> None:
    head = json.dumps(body).encode()
    headers = {}
    if length != "none":
        value = str(len(head)) if length == "right" else length
        headers["Inference-Header-Content-Length"] = value
    reply = send(line, "POST", f"/v2/models/{model}/infer", head + tail, headers)
    if reply.status == 200:
        assert reply.headers["content-type"] in ("application/json", "application/octet-stream")
    else:
        assert reply.status in (400, 403, 503)
        assert len(reply.error) < 2000


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_no_damage_to_a_right_body_gets_more_than_a_clear_refusal(
    line: http.client.HTTPConnection, data: st.DataObject
) -> None:
    body = bytearray(json_body(1, id="mine", outputs=[{"name": "label"}]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        action = data.draw(st.sampled_from(["change", "insert", "remove"]))
        if action == "change":
            body[place] = data.draw(st.integers(0, 255))
        elif action == "insert":
            body[place:place] = data.draw(st.binary(max_size=5))
        else:
            del body[place : place + data.draw(st.integers(1, 40))]
    reply = send(line, "POST", INFER, bytes(body))
    assert reply.status in (200, 400)
    if reply.status == 400:
        assert reply.error


def test_fuzzing_leaves_nothing_behind(running: Running) -> None:
    with watched(running) as neighbour:
        neighbour.ask()
