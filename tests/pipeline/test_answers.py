from __future__ import annotations

import json

import numpy as np
import pytest

from edge_agent.pipeline import StepFailed, Tensors
from edge_agent.pipeline.task import answer
from edge_agent.wire.manifest import Manifest, StepSpec
from tests.runtime.networks import IMAGE, LABEL, NETWORK, SCORES

MANIFEST = Manifest(
    model="pets",
    version=1,
    profile="this-machine",
    variant="linear/fp32",
    inputs=(IMAGE,),
    outputs=(SCORES, LABEL),
    labels=("cat", "dog", "owl"),
    pipeline=(StepSpec(name="model"),),
    network=NETWORK,
    files=(),
)


def f4(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def i8(*values: object) -> np.ndarray:
    return np.array(values, np.int64)


def test_each_item_has_its_label_s_name_and_score() -> None:
    outputs: Tensors = {"scores": f4([0.25, 0.5, 0.25], [1, 0, 0]), "label": i8(1, 0)}
    assert answer(outputs, MANIFEST) == [
        {"label": "dog", "scores": [0.25, 0.5, 0.25], "score": 0.5},
        {"label": "cat", "scores": [1, 0, 0], "score": 1},
    ]


def test_minus_one_is_unknown() -> None:
    outputs: Tensors = {"scores": f4([0.25, 0.5, 0.25]), "label": i8(-1), "top_labels": i8([2, -1])}
    [item] = answer(outputs, MANIFEST)
    assert (item["label"], item["score"]) == ("unknown", 0.5)
    assert item["top_labels"] == ["owl", "unknown"]


@pytest.mark.parametrize("index", [3, -2])
def test_an_index_without_a_name_fails(index: int) -> None:
    with pytest.raises(StepFailed, match="the manifest names 3 labels"):
        answer({"label": i8(index)}, MANIFEST)


def test_without_names_the_index_stays() -> None:
    assert answer({"label": i8(7)}, MANIFEST.model_copy(update={"labels": ()})) == [{"label": 7}]


def test_boxes_are_objects_without_their_padding() -> None:
    outputs: Tensors = {
        "boxes": f4([[0, 0, 1, 1], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2),
        "box_scores": f4([0.5, 0], [0, 0]),
        "box_labels": i8([2, -1], [-1, -1]),
        "count": i8(1, 0),
    }
    assert answer(outputs, MANIFEST) == [
        {"boxes": [{"box": [0, 0, 1, 1], "score": 0.5, "label": "owl"}]},
        {"boxes": []},
    ]


def test_an_answer_is_json_whatever_it_holds() -> None:
    outputs: Tensors = {
        "value": f4([1, np.nan], [np.inf, -1]),
        "half": np.array([1.5, 2], np.float16),
        "flag": np.array([True, False]),
        "text": np.array([[b"a"], [b"\xff"]], object),
        "label": np.array([0.5, 1], np.float32),  # no index: passed on
    }
    assert json.loads(json.dumps(answer(outputs, MANIFEST), allow_nan=False)) == [
        {"value": [1, None], "half": 1.5, "flag": True, "text": ["a"], "label": 0.5},
        {"value": [None, -1], "half": 2, "flag": False, "text": ["\\xff"], "label": 1},
    ]


def test_outputs_of_different_lengths_are_not_cut_to_the_shortest() -> None:
    with pytest.raises(StepFailed, match="number of items: 'value' 3, 'label' 2"):
        answer({"value": f4(1, 2, 3), "label": i8(0, 1)}, MANIFEST)


def test_a_single_value_is_no_answer_per_item() -> None:
    for name, array in (("value", np.float32(1).reshape(())), ("label", np.array(1))):
        with pytest.raises(StepFailed, match=f"output '{name}' is a single value"):
            answer({name: array}, MANIFEST)
