"""Tensors of every datatype through the encoding, without a server."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.runtime import numpy_dtype
from edge_agent.serve import oip
from edge_agent.serve.errors import BadRequest
from edge_agent.wire.manifest import Datatype, Manifest, ModelSpec, StepSpec, TensorSpec

NUMERIC = [name for name in get_args(Datatype) if name not in ("BF16", "BYTES", "FP16")]


def manifest() -> Manifest:
    return Manifest(
        model="m",
        version=3,
        profile="p",
        variant="v",
        inputs=(),
        outputs=(),
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="f", inputs=(), outputs=()),
        files=(),
    )


def request(name: str, array: np.ndarray, binary: bool) -> tuple[bytes, int | None]:  # type: ignore[type-arg]
    """A request as a client writes it; written here a second time, on purpose."""
    entry: dict[str, object] = {"name": "x", "shape": list(array.shape), "datatype": name}
    if not binary:
        entry["data"] = array.ravel().tolist()
        return json.dumps({"inputs": [entry]}).encode(), None
    data = array.tobytes()
    entry["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [entry]}).encode()
    return head + data, len(head)


def values(name: str) -> np.ndarray:  # type: ignore[type-arg]
    dtype = numpy_dtype(name)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array([[info.min, 0, info.max]], dtype)
    if dtype.kind == "b":
        return np.array([[True, False, True]])
    return np.array([[-1.5, 0.1, 3e30]], dtype)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", NUMERIC)
def test_every_datatype_survives_both_ways(name: str, binary: bool) -> None:
    array = values(name)
    call = oip.decode(*request(name, array, binary), inputs=())
    assert call.tensors["x"].dtype == array.dtype
    np.testing.assert_array_equal(call.tensors["x"], array)
    reply = oip.encode(oip.Call({}, binary=binary), manifest(), "p1", {"x": array})
    head = json.loads(reply.parts[0])
    assert head["outputs"][0]["datatype"] == name
    if binary:
        assert reply.parts[1] == array.tobytes()
        assert reply.head_length == len(reply.parts[0])
    else:
        np.testing.assert_array_equal(
            np.array(head["outputs"][0]["data"], array.dtype), array.ravel()
        )


def test_half_precision_travels_as_binary_only() -> None:
    array = np.array([[1.5, -2.0]], np.float16)
    np.testing.assert_array_equal(
        oip.decode(*request("FP16", array, True), inputs=()).tensors["x"], array
    )
    with pytest.raises(BadRequest, match="binary only"):
        oip.encode(oip.Call({}), manifest(), "p", {"x": array})


def test_text_travels_in_both_forms() -> None:
    words = [b"a", b"", "에지".encode()]
    as_json = json.dumps(
        {"inputs": [{"name": "x", "shape": [3], "datatype": "BYTES", "data": ["a", "", "에지"]}]}
    ).encode()
    assert oip.decode(as_json, None, ()).tensors["x"].tolist() == words
    data = b"".join(len(word).to_bytes(4, "little") + word for word in words)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [3],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(data)},
                }
            ]
        }
    ).encode()
    array = oip.decode(head + data, len(head), ()).tensors["x"]
    assert array.tolist() == words
    reply = oip.encode(oip.Call({}, binary=True), manifest(), "p", {"x": array})
    assert reply.parts[1] == data
    text = oip.encode(oip.Call({}), manifest(), "p", {"x": array})
    assert json.loads(text.parts[0])["outputs"][0]["data"] == ["a", "", "에지"]


@pytest.mark.parametrize(
    "data", [b"", b"\x01\0\0\0", b"\xff\xff\xff\xffab", b"\0\0\0\0" * 3, b"\x01\0\0\0a\x09"]
)
def test_damaged_text_tensors_are_refused(data: bytes) -> None:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(data)},
                }
            ]
        }
    ).encode()
    with pytest.raises(BadRequest):
        oip.decode(head + data, len(head), ())


def test_a_raw_body_needs_one_input_and_one_free_axis() -> None:
    one = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    free = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
    body = np.ones((3, 2), np.float32).tobytes()
    assert oip.decode(body, 0, (one,)).tensors["x"].shape == (3, 2)
    for inputs in ((), (one, one), (free,)):
        with pytest.raises(BadRequest):
            oip.decode(body, 0, inputs)
    with pytest.raises(BadRequest):
        oip.decode(body[:-1], 0, (one,))


def test_json_has_null_where_numbers_are_not_finite() -> None:
    reply = oip.encode(oip.Call({}), manifest(), "p", {"x": np.array([np.nan, np.inf, 1.0])})
    assert json.loads(reply.parts[0])["outputs"][0]["data"] == [None, None, 1.0]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
def test_no_body_does_more_than_be_refused(body: bytes, head_length: int | None) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    try:
        oip.decode(body, head_length, (spec,))
    except BadRequest as error:
        assert "\n" not in str(error)


def test_binary_tensors_are_cut_in_the_order_of_the_json() -> None:
    first, second = np.arange(3, dtype=np.float32), np.arange(2, dtype=np.int64)
    entries = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, datatype, array in (("a", "FP32", first), ("b", "INT64", second))
    ]
    head = json.dumps({"inputs": entries}).encode()
    call = oip.decode(head + first.tobytes() + second.tobytes(), len(head), ())
    np.testing.assert_array_equal(call.tensors["a"], first)
    np.testing.assert_array_equal(call.tensors["b"], second)
