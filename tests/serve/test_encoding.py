"""Tensors of every datatype through the encoding, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.pipeline import InputError
from edge_agent.pipeline.interface import validate
from edge_agent.pipeline.json_values import MAX_JSON_VALUES
from edge_agent.runtime import Array, Tensors, numpy_dtype
from edge_agent.serve import oip
from edge_agent.serve import tensors as forms
from edge_agent.serve.errors import BadRequest
from edge_agent.serve.prediction import Prediction
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


def prediction(outputs: Tensors) -> Prediction:
    """An answered one."""
    answered = Prediction("p1", manifest(), {}, 1, 0.0, lambda _: None)
    answered.outputs = outputs
    return answered


def encoded(outputs: Tensors, *, binary: bool = False) -> oip.Answer:
    return oip.encode(oip.Ask(binary=binary), prediction(outputs))


def decoded(body: bytes, head_length: int | None) -> Array:
    """The tensor x of a request."""
    return oip.decode(body, head_length)[0]["x"]


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
    arrived = decoded(*request(name, array, binary))
    assert arrived.dtype == array.dtype
    np.testing.assert_array_equal(arrived, array)
    reply = encoded({"x": array}, binary=binary)
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
    np.testing.assert_array_equal(decoded(*request("FP16", array, True)), array)
    assert encoded({"x": array}, binary=True).parts[1] == array.tobytes()
    with pytest.raises(BadRequest, match="binary only"):
        encoded({"x": array})


def bf16_request(patterns: np.ndarray) -> tuple[bytes, int]:  # type: ignore[type-arg]
    data = patterns.astype("<u2").tobytes()
    entry = {
        "name": "x",
        "shape": [1, patterns.size],
        "datatype": "BF16",
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    return head + data, len(head)


def bf16_answer(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The bit patterns of an output that the interface names BF16."""
    answered = prediction({"y": values})
    spec = TensorSpec(name="y", datatype="BF16", shape=(-1,))
    answered.manifest = manifest().model_copy(update={"outputs": (spec,)})
    reply = oip.encode(oip.Ask(binary=True), answered)
    assert json.loads(reply.parts[0])["outputs"][0]["datatype"] == "BF16"
    return np.frombuffer(reply.parts[1], "<u2")


def test_every_bf16_is_a_float32_inside_and_comes_back() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    body, head_length = bf16_request(patterns)
    plan = oip.plan(body[:head_length], len(body))
    assert plan is not None
    for inside in (decoded(body, head_length), plan.read(body)["x"]):
        assert inside.dtype == np.float32
        # BF16 is the upper half of a float32
        np.testing.assert_array_equal(inside.ravel().view(np.uint32) >> 16, patterns)
        back = bf16_answer(inside.ravel())
        number = ~np.isnan(inside.ravel())
        np.testing.assert_array_equal(back[number], patterns[number])
        assert np.isnan((back[~number].astype(np.uint32) << 16).view(np.float32)).all()


def test_float32_becomes_the_nearest_bf16_and_of_two_the_even_one() -> None:
    bits = [0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, 0x7F7F_FFFF, 0xBF80_8001]
    wanted = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0xBF81]
    values = np.array(bits, np.uint32).view(np.float32)
    assert bf16_answer(values).tolist() == wanted


def test_text_travels_in_both_forms() -> None:
    words = [b"a", b"", "에지".encode()]
    as_json = json.dumps(
        {"inputs": [{"name": "x", "shape": [3], "datatype": "BYTES", "data": ["a", "", "에지"]}]}
    ).encode()
    assert decoded(as_json, None).tolist() == words
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
    array = decoded(head + data, len(head))
    assert array.tolist() == words
    assert encoded({"x": array}, binary=True).parts[1] == data
    text = encoded({"x": array})
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
        decoded(head + data, len(head))


def test_a_raw_body_needs_one_input_and_one_free_axis() -> None:
    one = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    free = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
    body = np.ones((3, 2), np.float32).tobytes()
    tensors, ask = oip.decode_raw(body, (one,))
    assert tensors["x"].shape == (3, 2)
    assert ask.binary
    for inputs in ((), (one, one), (free,)):
        with pytest.raises(BadRequest):
            oip.decode_raw(body, inputs)
    with pytest.raises(BadRequest):
        oip.decode_raw(body[:-1], (one,))


def test_json_has_null_where_numbers_are_not_finite() -> None:
    reply = encoded({"x": np.array([np.nan, np.inf, 1.0])})
    assert json.loads(reply.parts[0])["outputs"][0]["data"] == [None, None, 1.0]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
def test_no_body_does_more_than_be_refused(body: bytes, head_length: int | None) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    readings: list[Callable[[], object]] = [
        lambda: oip.decode(body, head_length),
        lambda: oip.decode_raw(body, (spec,)),
        lambda: oip.plan(body[: oip.check_head_length(head_length or 0, body)], len(body)),
    ]
    for read in readings:
        try:
            read()
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
    body = head + first.tobytes() + second.tobytes()
    plan = oip.plan(head, len(body))
    assert plan is not None
    for tensors in (oip.decode(body, len(head))[0], plan.read(body)):
        np.testing.assert_array_equal(tensors["a"], first)
        np.testing.assert_array_equal(tensors["b"], second)


# ── before data is looked at ─────────────────────────────────────────────────────────────────────

FLOATS = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
TEXTS = TensorSpec(name="x", datatype="BYTES", shape=(-1,))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "xx"},
        {"datatype": "FP64"},
        {"datatype": "BYTES"},
        {"shape": [2]},
        {"shape": [1, 3]},
        {"shape": [0, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("binary", [False, True])
def test_an_unfit_input_is_refused_in_the_words_of_the_pipeline_without_a_look_at_its_data(
    change: dict[str, object], binary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 2], **change}
    dtype = numpy_dtype(entry["datatype"])
    with pytest.raises(InputError) as wanted:
        validate({entry["name"]: np.empty(entry["shape"], dtype)}, (FLOATS,))
    for name in ("from_json", "from_bytes"):
        monkeypatch.setattr(forms, name, lambda *_: pytest.fail("the data was looked at"))
    if binary:
        entry["parameters"] = {"binary_data_size": 8}
    else:
        entry["data"] = [1, 2]
    head = json.dumps({"inputs": [entry]}).encode()
    body = head + bytes(8) if binary else head
    with pytest.raises(InputError) as found:
        oip.decode(body, len(head) if binary else None, (FLOATS,))
    assert str(found.value) == str(wanted.value)
    with pytest.raises(InputError) as planned:
        oip.plan(head, len(body), (FLOATS,))
    assert str(planned.value) == str(wanted.value)


def json_body(spec: TensorSpec, shape: list[int], data: str) -> bytes:
    entry = json.dumps({"name": "x", "datatype": spec.datatype, "shape": shape})
    return f'{{"inputs":[{entry[:-1]},"data":{data}}}]}}'.encode()


def test_values_beyond_the_shape_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_decoder", lambda *_: pytest.fail("the values were decoded"))
    many = 100_000
    with pytest.raises(BadRequest, match=f"{many} values do not make the shape"):
        oip.decode(json_body(FLOATS, [1, 2], "[" + ",".join("0" * many) + "]"), None, (FLOATS,))
    with pytest.raises(BadRequest, match=f"{many} values do not make the shape"):
        data = "[" + ",".join(['""'] * many) + "]"
        oip.decode(json_body(TEXTS, [1], data), None, (TEXTS,))


def test_quotes_and_commas_in_texts_are_no_values() -> None:
    texts = ['",' * 5000, "\\", '\\"', ""]
    body = json_body(TEXTS, [4], json.dumps(texts))
    tensors, _ = oip.decode(body, None, (TEXTS,))
    assert [each.decode() for each in tensors["x"]] == texts


def test_elements_of_bytes_are_bounded() -> None:
    most = forms.MAX_BYTES_ELEMENTS
    for count in (most, most + 1):
        entry = {"name": "x", "datatype": "BYTES", "shape": [count]}
        entry["parameters"] = {"binary_data_size": 4 * count}
        head = json.dumps({"inputs": [entry]}).encode()
        body = head + bytes(4 * count)
        if count == most:
            assert oip.decode(body, len(head), (TEXTS,))[0]["x"].shape == (most,)
            continue
        plan = oip.plan(head, len(body), (TEXTS,))
        assert plan is not None
        for read in (lambda: oip.decode(body, len(head), (TEXTS,)), lambda: plan.read(body)):  # noqa: B023
            with pytest.raises(BadRequest, match=f"{most + 1} elements of BYTES, at most {most}"):
                read()


def test_values_in_json_are_bounded_by_a_limit_or_one_item() -> None:
    count = MAX_JSON_VALUES + 2
    data = "[" + ",".join("0" * count) + "]"
    with pytest.raises(BadRequest, match="send them as binary"):
        oip.decode(json_body(FLOATS, [count // 2, 2], data), None, (FLOATS,))
    wide = TensorSpec(name="x", datatype="FP32", shape=(-1, count))
    tensors, _ = oip.decode(json_body(wide, [1, count], data), None, (wide,))
    assert tensors["x"].shape == (1, count)


@pytest.mark.parametrize("place", ["shape", "parameters", "id"])
def test_values_beside_the_data_are_bounded_before_they_are_decoded(place: str) -> None:
    many = b"[" + b",".join([b"0"] * 600_000) + b"]"
    rest = b'"%b": %b' % (place.encode(), many)
    entry = b'{"name": "x", "datatype": "FP32", "data": [1, 2], %b}'
    entry %= rest if place == "shape" else b'"shape": [1, 2]'
    body = b'{"inputs": [%b]%b}' % (entry, b"" if place == "shape" else b", " + rest)
    with pytest.raises(BadRequest, match="values in JSON, at most 524288"):
        oip.decode(body, None, (FLOATS,))
    with pytest.raises(BadRequest, match="values in JSON, at most 524288"):
        oip.plan(body, len(body), (FLOATS,))
