from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_agent.pipeline import StepConfigError, Tensors, registered
from edge_agent.pipeline.boxes import overlap
from edge_agent.pipeline.builtin import boxes, classify, grade, label, rule
from edge_agent.pipeline.services import Condition
from edge_agent.pipeline.steps import bind
from edge_agent.wire.manifest import StepSpec


def f4(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def test_classify_is_a_softmax_and_its_argmax() -> None:
    logits = f4([0.0, np.log(3.0)], [2.0, 2.0])
    answer = classify({"logits": logits})
    np.testing.assert_allclose(answer["scores"], [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    assert answer["label"].tolist() == [1, 0]
    assert (answer["scores"].dtype, answer["label"].dtype) == (np.float32, np.int64)


def test_classify_survives_huge_logits() -> None:
    scores = classify({"logits": f4([1e30, -1e30, 0.0])})["scores"]
    np.testing.assert_array_equal(scores, [[1, 0, 0]])


def test_a_temperature_flattens_scores_and_keeps_the_label() -> None:
    logits = f4([1.0, 3.0])
    sharp, flat = classify({"l": logits}), classify({"l": logits}, temperature=4.0)
    assert flat["scores"][0, 1] < sharp["scores"][0, 1]
    assert flat["label"] == sharp["label"]


def test_classify_of_several_outputs_wants_one_named_and_carries_the_others() -> None:
    outputs = {"a": np.zeros((1, 2), "f4"), "b": np.ones((1, 2), "f4")}
    with pytest.raises(ValueError, match="several outputs"):
        classify(outputs)
    answer = classify(outputs, logits="b")
    assert list(answer) == ["a", "scores", "label"]


SCORES: Tensors = {"scores": f4([0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [np.nan] * 3)}


def test_a_label_below_its_threshold_is_unknown() -> None:
    answer = label(SCORES, threshold=0.5)
    assert answer["label"].tolist() == [1, -1, -1]
    np.testing.assert_array_equal(answer["score"], f4(0.6, 0.4, np.nan))
    assert answer["scores"] is SCORES["scores"]


def test_the_best_classes_come_first_and_equals_in_order() -> None:
    answer = label(SCORES, top=2)
    assert answer["top_labels"][:2].tolist() == [[1, 2], [0, 2]]
    np.testing.assert_array_equal(answer["top_scores"][:2], f4([0.6, 0.3], [0.4, 0.4]))
    assert label(SCORES, top=9)["top_labels"].shape == (3, 3)


def detector(**changes: Any) -> Tensors:
    """Two overlapping boxes of a class, one of another class, one far away, one weak."""
    tensors: Tensors = {
        "boxes": f4(
            [[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11], [50, 50, 60, 60], [0, 0, 9, 9]]
        ),
        "scores": f4([[0.8, 0], [0.9, 0], [0, 0.7], [0.5, 0.1], [0.1, 0.1]]),
    }
    return {**tensors, **changes}


def test_of_overlapping_boxes_of_a_class_the_best_stays() -> None:
    found = boxes(detector(), scores="scores", most=4)
    assert found["count"].tolist() == [3]
    assert found["box_labels"].tolist() == [[0, 1, 0, -1]]
    np.testing.assert_array_equal(found["box_scores"], f4([0.9, 0.7, 0.5, 0]))
    np.testing.assert_array_equal(found["boxes"][0, 0], [1, 0, 11, 10])
    np.testing.assert_array_equal(found["boxes"][0, 3], [0, 0, 0, 0])
    assert list(found) == ["boxes", "box_scores", "box_labels", "count"]


def test_the_number_of_boxes_is_bounded() -> None:
    found = boxes(detector(), scores="scores", most=1)
    assert found["boxes"].shape == (1, 1, 4)
    assert found["box_labels"].tolist() == [[0]]


def test_one_tensor_may_hold_boxes_and_scores_in_either_order_of_axes() -> None:
    parts = detector()
    together = np.concatenate([parts["boxes"], parts["scores"]], axis=-1)
    expected = boxes(parts, scores="scores")
    for tensor, transposed in ((together, False), (together.transpose(0, 2, 1), True)):
        found = boxes({"y": tensor}, boxes="y", transposed=transposed)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_centres_become_corners() -> None:
    centred = detector(boxes=f4([[5, 5, 10, 10]] * 5))
    found = boxes(centred, scores="scores", form="cxcywh")
    np.testing.assert_array_equal(found["boxes"][0, 0], [0, 0, 10, 10])
    assert found["count"].tolist() == [2]  # one of each class


def test_scores_of_one_class_need_no_axis() -> None:
    found = boxes(detector(scores=f4([0.8, 0.9, 0.7, 0.5, 0.1])), scores="scores")
    assert found["box_labels"][0, :3].tolist() == [0, 0, -1]


def test_nothing_found_is_an_empty_answer() -> None:
    for changed in (
        detector(scores=f4([[0.0, 0.0]] * 5)),
        detector(scores=f4([[np.nan, np.nan]] * 5)),
        detector(boxes=f4([[np.nan] * 4] * 5)),
        {"boxes": np.zeros((1, 0, 4), "f4"), "scores": np.zeros((1, 0, 2), "f4")},
    ):
        assert boxes(changed, scores="scores")["count"].tolist() == [0]


@pytest.mark.parametrize("shape", [(1, 5), (1, 4, 4), (5, 4)])
def test_tensors_that_are_no_boxes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are no boxes and scores"):
        boxes(detector(boxes=np.zeros(shape, "f4")), scores="scores")


def test_overlap_is_intersection_over_union() -> None:
    others = f4([0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1], [2, 2, 0, 0])
    np.testing.assert_allclose(overlap(f4(0, 0, 2, 2), others), [1, 1 / 3, 0, 0, 0])
    np.testing.assert_allclose(overlap(f4(1, 1, 1, 1), others), [0] * 5)


def test_a_grade_counts_the_thresholds_that_are_reached() -> None:
    tensors = {"score": np.array([0.1, 0.5, 0.9, np.nan, np.inf])}
    assert grade(tensors, thresholds=[0.5, 0.8])["grade"].tolist() == [0, 1, 2, -1, 2]


def test_a_grade_takes_a_column() -> None:
    tensors = {"scores": f4([0.1, 0.9], [0.9, 0.1])}
    assert grade(tensors, thresholds=[0.5], score="scores", column=1)["grade"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="2 values per item, no column 2"):
        grade(tensors, thresholds=[0.5], score="scores", column=2)


def labelled() -> Tensors:
    return {"label": np.array([0, 1, 2, 0]), "weight": f4([1], [5], [9], [np.nan])}


def test_a_rule_overrides_the_label_where_it_holds() -> None:
    answer = rule(labelled(), when=Condition(tensor="weight", above=4, below=9), label=7)
    assert answer["label"].tolist() == [0, 7, 2, 0]
    assert answer["overridden"].tolist() == [False, True, False, False]


def test_later_rules_win_and_earlier_ones_are_remembered() -> None:
    first = rule(labelled(), when=Condition(tensor="weight", above=4), label=7)
    second = rule(first, when=Condition(tensor="weight", above=8), label=-1)
    assert second["label"].tolist() == [0, 7, -1, 0]
    assert second["overridden"].tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("grade", {"thresholds": [0.5, 0.5]}, "thresholds must ascend"),
        ("grade", {"thresholds": []}, "at least 1"),
        ("rule", {"when": {"tensor": "x"}, "label": 1}, "needs 'above' or 'below'"),
        ("rule", {"when": {"tensor": "x", "over": 1}, "label": 1}, "not permitted"),
        ("rule", {"when": {"tensor": "x", "above": 1}, "label": -2}, "greater than or equal to -1"),
        ("label", {"top": 0}, "greater than or equal to 1"),
        ("boxes", {"iou": 1.5}, "less than or equal to 1"),
        ("boxes", {"form": "xywh"}, "'xyxy' or 'cxcywh'"),
        ("classify", {"temperature": 0}, "greater than 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(StepConfigError, match=message):
        bind(StepSpec(name=name, config=config), registered())
