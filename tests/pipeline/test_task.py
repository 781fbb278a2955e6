from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.pipeline import InputError
from edge_agent.pipeline.errors import BadJson, TaskError
from edge_agent.pipeline.task import decode_json, decode_request, tensors_from_values
from edge_agent.wire.manifest import Datatype, TensorSpec


def spec(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


GRID = spec("grid", "FP32", -1, 2, 3)
FLAG = spec("flag", "BOOL", -1)


def inputs(**values: object) -> bytes:
    return json.dumps({"inputs": values}).encode()


@pytest.mark.parametrize(
    ("value", "count"),
    [([[1, 2, 3], [4, 5, 6.5]], 1), ([[[1, 2, 3], [4, 5, 6.5]]], 1), ([[[0] * 3] * 2] * 4, 4)],
)
def test_an_input_is_one_item_or_a_batch(value: list[Any], count: int) -> None:
    tensors = decode_json(inputs(grid=value), (GRID,))
    assert tensors["grid"].shape == (count, 2, 3)
    assert tensors["grid"].dtype == np.float32
    np.testing.assert_array_equal(tensors["grid"].ravel(), np.ravel(value))


def test_a_scalar_is_an_item_of_an_input_without_axes() -> None:
    assert decode_json(inputs(flag=True), (FLAG,))["flag"].tolist() == [True]
    assert decode_json(inputs(flag=[True, False]), (FLAG,))["flag"].tolist() == [True, False]


def test_instances_are_a_batch() -> None:
    item = [[1, 2, 3], [4, 5, 6]]
    body = json.dumps({"instances": [item, item]}).encode()
    np.testing.assert_array_equal(decode_json(body, (GRID,))["grid"], [item, item])


def test_instances_name_their_inputs_where_there_are_several() -> None:
    row = {"grid": [[1, 2, 3], [4, 5, 6]], "flag": False}
    body = json.dumps({"instances": [row, {**row, "flag": True}]}).encode()
    tensors = decode_json(body, (GRID, FLAG))
    assert tensors["grid"].shape == (2, 2, 3)
    assert tensors["flag"].tolist() == [False, True]


def test_strings_are_bytes() -> None:
    text = spec("text", "BYTES", -1, 2)
    tensors = decode_json(inputs(text=["a", "ü["]), (text,))
    assert tensors["text"].tolist() == [[b"a", "ü[".encode()]]


def test_an_id_and_parameters_may_stand_beside_the_inputs() -> None:
    body = {"inputs": {"flag": True}, "id": "q1", "parameters": {"timeout": 5}}
    request = decode_request(json.dumps(body).encode(), (FLAG,))
    assert (request.id, request.parameters) == ("q1", {"timeout": 5})


INTEGERS: list[tuple[Datatype, int, int]] = [
    ("UINT8", 0, 255),
    ("INT8", -128, 127),
    ("UINT32", 0, 2**32 - 1),
    ("INT64", -(2**63), 2**63 - 1),
    ("UINT64", 0, 2**64 - 1),
]


@pytest.mark.parametrize(("datatype", "least", "most"), INTEGERS)
def test_integers_fit_to_the_last_or_are_refused(datatype: Datatype, least: int, most: int) -> None:
    x = spec("x", datatype, -1)
    assert decode_json(inputs(x=[least, most]), (x,))["x"].tolist() == [least, most]
    for value in (least - 1, most + 1):
        with pytest.raises(BadJson, match="input 'x'"):
            decode_json(inputs(x=[value]), (x,))


@pytest.mark.parametrize(
    ("datatype", "text"),
    [
        ("UINT8", "1.0"),
        ("UINT8", "true"),
        ("INT64", "1e3"),
        ("FP32", "1e39"),
        ("FP16", "70000"),
        ("FP64", "1e400"),
        ("FP32", "null"),
        ("FP32", '"1"'),
        ("FP32", "true"),
        ("FP32", "NaN"),
        ("BOOL", "1"),
        ("BYTES", "1"),
        ("BYTES", '"\\ud800"'),
        ("FP32", "1" * 5000),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype: Datatype, text: str) -> None:
    body = b'{"inputs": {"x": [%s]}}' % text.encode()
    with pytest.raises(BadJson) as caught:
        decode_json(body, (spec("x", datatype, -1),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not understood"),
        (b"[1]", "Expected `object`"),
        (b"\xff\xfe", "not understood"),
        (b'{"inputs": {"grid": [[[1,2,3]', "not understood"),
        (b'{"inputs": {"grid": ' + b"[" * 100_000, "recursion"),
        (b"{}", 'needs either "inputs" or "instances"'),
        (b'{"inputs": {}, "instances": []}', 'needs either "inputs" or "instances"'),
        (b'{"instances": [ ]}', "holds no items"),
        (b'{"instances": 1}', '"instances" must be a list'),
        (b'{"input": {}}', "unknown field `input`"),
        (b'{"inputs": {}}', "input 'grid' is missing"),
        (b'{"inputs": {"gird": 1}}', "unknown input 'gird'; did you mean 'grid'?"),
        (b'{"inputs": {"grid": 1}}', "nested 0 deep, expected 3 for a batch, 2 for one item"),
        (b'{"inputs": {"grid": [[[[1]]]]}}', "nested 4 deep"),
        (b'{"inputs": {"grid": [[1,2,3],[4,5]]}}', "the lists have different lengths"),
        (b'{"inputs": {"grid": [[1,2,3],4]}}', "Expected `array`, got `int`"),
        (b'{"inputs": {"grid": {"a": 1}}}', "nested 0 deep"),
        (b'{"instances": [{"grid": [[1,2,3]]}, {}]}', "instance 1: input 'grid' is missing"),
        (b'{"instances": [{"gird": 1}]}', "instance 0: unknown input 'gird'; did you mean 'grid'?"),
        (b'{"instances": [{"grid": 1}, 7]}', "instance 1: Expected `object`"),
    ],
)  # fmt: skip
def test_a_body_of_another_form_is_refused_in_one_line(body: bytes, message: str) -> None:
    with pytest.raises(BadJson) as caught:
        decode_json(body, (GRID,))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_shape_is_the_interface_s_error() -> None:
    with pytest.raises(InputError, match=r"shape \[1, 2, 2\], expected \[-1, 2, 3\]"):
        decode_json(inputs(grid=[[1, 2], [3, 4]]), (GRID,))
    with pytest.raises(InputError, match="holds 2 items, others 1"):
        decode_json(inputs(grid=[[1, 2, 3], [4, 5, 6]], flag=[True, False]), (GRID, FLAG))


def test_bare_instances_of_a_model_with_several_inputs_are_refused() -> None:
    with pytest.raises(BadJson, match="must be an object with 'grid', 'flag'"):
        decode_json(b'{"instances": [[1]]}', (GRID, FLAG))


ZEROS = b",".join([b"0"] * 600_000)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": {"x": [%b]}}' % ZEROS,
        b'{"instances": [%b]}' % ZEROS,
        b'{"instances": [%b]}' % ZEROS.replace(b"0", b"{}"),
        b'{"inputs": {"x": 1}, "parameters": {"a": [%b]}}' % ZEROS,
    ],
    ids=["input", "instances", "objects", "parameters"],
)
def test_more_values_than_a_request_may_hold_are_refused(body: bytes) -> None:
    with pytest.raises(BadJson, match=r"60000[01] values in JSON, at most 524288"):
        decode_json(body, (spec("x", "FP32", -1),))


def test_one_item_may_hold_more_values_than_a_request_of_others() -> None:
    wide = spec("x", "UINT8", -1, 600_000)
    assert decode_json(b'{"inputs": {"x": [%b]}}' % ZEROS, (wide,))["x"].shape == (1, 600_000)


def test_commas_in_texts_are_no_values() -> None:
    text = spec("text", "BYTES", -1)
    words = ["," * 600_000, '\\" ,' * 3]
    tensors = decode_json(inputs(text=words), (text,))
    assert tensors["text"].tolist() == [word.encode() for word in words]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"[%b]" % ZEROS[:20_001], "10001 values do not make one item of [100, 100]"),
        (b"[%b, [0, 0" % ZEROS[:20_001], "10003 values do not make one item of [100, 100]"),
    ],
)
def test_numbers_that_make_no_item_are_refused_before_they_are_decoded(
    value: bytes, message: str
) -> None:
    """The second is no JSON at all, which would be the error had it been read."""
    square = spec("x", "FP32", -1, 100, 100)
    for text, many in ((b"[%b]" % value, "one item"), (b"[[%b]]" % value, "items")):
        with pytest.raises(BadJson) as caught:
            tensors_from_values({"x": text}, (square,))
        assert message.replace("one item", many) in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["inputs", "instances", "grid", "flag", "id"]), children)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_tensors_or_a_typed_error(body: bytes) -> None:
    try:
        tensors = decode_json(body, (GRID, FLAG))
    except InputError as error:
        assert isinstance(error, TaskError) or "grid" in str(error) or "flag" in str(error)
    else:
        assert list(tensors) == ["grid", "flag"]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_arrive_as_they_were_written(values: list[float]) -> None:
    x = spec("x", "FP32", -1)
    assert decode_json(inputs(x=values), (x,))["x"].tolist() == values
