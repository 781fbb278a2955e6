"""Plans read binary requests with a head that was met before; forms write their answers."""

from __future__ import annotations

import json
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
from edge_agent.wire.manifest import StepSpec, TensorSpec
from tests.runtime.networks import STEPS, images, write_bundle

from .asking import BINARY, head_and_tail, infer
from .conftest import Running, send
from .gates import Doubling, alter, doubling
from .test_protocol import INFER, binary_request, expected


def memo(running: Running) -> dict[bytes, object]:
    """The plans that the served version has."""
    return running.plane.models["digits"].memo


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
    """As many columns of `above` as logits exceed 0: no form fits the next answer."""
    code = """
import numpy as np
from edge_agent.pipeline import service

@service("above")
def above(tensors):
    rows = [np.flatnonzero(row > 0) for row in tensors["logits"]]
    above = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for row, found in zip(above, rows):
        row[: len(found)] = found
    return {"above": above}
"""
    manifest = write_bundle(
        tmp_path / "slot",
        version=2,
        steps=(*STEPS[:5], StepSpec(name="above")),
        code={"steps.py": code},
        with_golden=False,
        cost_us=50,
    )
    above = TensorSpec(name="above", datatype="INT64", shape=(-1, -1))
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
