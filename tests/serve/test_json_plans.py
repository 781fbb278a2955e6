"""JSON requests whose text was met before: answered as if each were read for the first time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.serve import oip
from edge_agent.serve.json_plans import Cut, JsonPlan
from edge_agent.wire.manifest import TensorSpec
from tests.runtime.networks import images

from .conftest import Running
from .test_protocol import INFER, json_request

X = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)


def body(data: object, **more: object) -> bytes:
    item = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [item], **more}).encode()


def plan_of(first: bytes) -> tuple[JsonPlan | None, Cut | None]:
    cut = Cut.of(first)
    if cut is None:
        return None, None
    tensors, ask = oip.decode(first, None, X)
    return JsonPlan.of(tensors, ask, "FP32", cut), cut


def test_a_plan_reads_what_the_whole_body_says() -> None:
    plan, cut = plan_of(body([1.0, 2.5, -3e-9]))
    assert plan is not None and cut is not None
    again = Cut.of(body([4, 5e3, 0]))
    assert again is not None and again.around == cut.around
    read = plan.read(again.data)
    assert read is not None
    np.testing.assert_array_equal(read["x"], np.float32([[4, 5e3, 0]]))
    assert read["x"].dtype == np.float32


@pytest.mark.parametrize(
    "data",
    [b"[1,2]", b"[1,2,3,4]", b"[1,2,1e39]", b'[1,2,"3"]', b"[1,2,NaN]", b"[1,2,null]", b"[1,,2]",
     b"[true,1,2]", b"[1,2,3", b"[]", b"1,2,3", b"[1,2,{}]"],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_left_to_the_whole_reading(data: bytes) -> None:
    plan, _ = plan_of(body([1, 2, 3]))
    assert plan is not None and plan.read(data) is None


@pytest.mark.parametrize(
    "first",
    [
        body([[1, 2, 3]]),
        body([1, 2, 3], parameters={"data": [1, 2, 3]}),
        body([1, 2, 3], id="mine"),
        body([1, 2, 3], parameters={"trace": True}),
        body([1, 2, 3], parameters={"note": "x" * 3000}),
    ],
    ids=["nested", "two lists", "an id", "a trace", "a long text"],
)
def test_what_others_cannot_have_is_no_plan(first: bytes) -> None:
    assert plan_of(first)[0] is None


def test_a_list_of_that_name_elsewhere_is_not_taken_for_the_input() -> None:
    binary = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"data": [1, 2, 3]}}
    assert Cut.of(json.dumps({"inputs": [binary]}).encode()) is not None
    with pytest.raises(oip.BadRequest, match="neither data"):
        plan_of(json.dumps({"inputs": [binary]}).encode())


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(), max_size=5),
    st.booleans(),
)
def test_a_plan_never_reads_what_the_whole_reading_refuses(values: list[float], wide: bool) -> None:
    plan, cut = plan_of(body([1, 2, 3]))
    assert plan is not None and cut is not None
    text = json.dumps(values, separators=(", " if wide else ",", ":")).encode()
    before, after = cut.around.split(b"\0")
    try:
        whole = oip.decode(before + text + after, None, X)[0]["x"]
    except Exception:
        whole = None
    read = plan.read(text)
    if whole is None:
        assert read is None
    elif read is not None:
        np.testing.assert_array_equal(read["x"], whole)


def test_a_client_s_second_request_is_answered_like_its_first(serving: Running) -> None:
    for count in (1, 3):
        answers = []
        for seed in (0, 1, 0):
            request = json_request(count)
            request["inputs"][0]["data"] = images(count, seed).ravel().tolist()  # type: ignore[index]
            reply = serving.ask("POST", INFER, request)
            assert reply.status == 200
            answers.append(reply.json)
        first, other, again = answers
        assert list(first) == list(other) == list(again)
        assert first["outputs"] == again["outputs"] != other["outputs"]
        assert len({answer.pop("id") for answer in answers}) == 3
        assert {**first, "outputs": None} == {**other, "outputs": None}


def test_a_bad_request_after_a_good_one_is_refused_in_the_same_words(serving: Running) -> None:
    good = json_request()
    texts = []
    for known in (False, True):
        if known:
            assert serving.ask("POST", INFER, good).status == 200
        for data in ([1.0] * 63, [1e39] * 64, ["a"] * 64, [99.0] * 64):
            bad = json_request()
            bad["inputs"][0]["data"] = data  # type: ignore[index]
            reply = serving.ask("POST", INFER, bad)
            assert reply.status == 400
            texts.append(reply.error)
    assert texts[:4] == texts[4:]


def test_wanted_outputs_stay_those_that_were_asked_for(serving: Running) -> None:
    wanted = json_request(outputs=[{"name": "label"}])
    for _ in range(2):
        reply = serving.ask("POST", INFER, wanted)
        assert [output["name"] for output in reply.json["outputs"]] == ["label"]
    both = serving.ask("POST", INFER, json_request())
    assert [output["name"] for output in both.json["outputs"]] == ["scores", "label"]
