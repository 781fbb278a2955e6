from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from edge_agent.pipeline import Array, Pipeline, Tensors
from edge_agent.runtime import Provenance
from edge_agent.wire.manifest import StepSpec, TensorSpec
from optimizer.errors import EvaluationFailed
from optimizer.evaluate import REJECTED, EvalData, evaluate, score


class Echo:
    """A network whose logits are its input."""

    provenance = Provenance("echo", "1", "CPU", "fp32", 1)

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        return {"logits": tensors["x"]}

    def close(self) -> None:
        pass


def pipeline(*steps: StepSpec, output: str = "label", datatype: str = "INT64") -> Pipeline:
    shape = [-1] if output == "label" else [-1, 3]
    return Pipeline(
        steps,
        Echo(),
        (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
        (TensorSpec.model_validate({"name": output, "datatype": datatype, "shape": shape}),),
    )


MODEL = StepSpec(name="model")
CLASSIFY = StepSpec(name="classify")
SMALL = StepSpec(name="check.range", config={"min": -5, "max": 5})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, given_ = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    result = score(given_, labels, ("a", "b", "c", "d", "e"))
    present = np.unique(labels)
    assert result.accuracy == pytest.approx(accuracy_score(labels, given_))
    assert result.macro_f1 == pytest.approx(f1_score(labels, given_, average="macro"))
    recalls = recall_score(labels, given_, labels=present, average=None, zero_division=0)
    assert [result.recall["abcde"[i]] for i in present] == pytest.approx(list(recalls))
    assert result.balanced_accuracy == pytest.approx(float(np.mean(recalls)))
    assert all(result.recall["abcde"[i]] is None for i in set(range(5)) - set(present.tolist()))


def test_a_refused_item_counts_as_wrong_and_spares_its_neighbours() -> None:
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    x[2] *= 100
    data = EvalData({"x": x}, np.array([0, 1, 2, 0, 1], dtype=np.int64))
    result = evaluate(pipeline(SMALL, MODEL, CLASSIFY), data, batch=4)
    assert result.predictions == (0, 1, REJECTED, 0, 1)
    assert result.rejected == 1
    assert result.accuracy == pytest.approx(0.8)


def test_scores_are_enough_where_there_is_no_label() -> None:
    data = EvalData({"x": np.eye(3, dtype=np.float32)}, np.array([0, 1, 2], dtype=np.int64))
    assert evaluate(pipeline(MODEL, CLASSIFY, output="scores", datatype="FP32"), data).accuracy == 1


def test_answers_without_classes_cannot_be_judged() -> None:
    data = EvalData({"x": np.eye(3, dtype=np.float32)}, np.array([0, 1, 2], dtype=np.int64))
    with pytest.raises(EvaluationFailed, match="answers with logits"):
        evaluate(pipeline(MODEL, output="logits", datatype="FP32"), data)


def test_scores_that_are_no_numbers_are_refused() -> None:
    x = np.array([[1, 0, 0], [0, np.nan, 0]], np.float32)
    data = EvalData({"x": x}, np.array([0, 1], dtype=np.int64))
    with pytest.raises(EvaluationFailed, match="scores of the pipeline are NaN"):
        evaluate(pipeline(MODEL, CLASSIFY, output="scores", datatype="FP32"), data)


def test_data_that_does_not_fit_is_one_clear_error() -> None:
    data = EvalData({"y": np.eye(3, dtype=np.float32)}, np.array([0, 1, 2], dtype=np.int64))
    with pytest.raises(EvaluationFailed, match="input 'x' is missing"):
        evaluate(pipeline(MODEL, CLASSIFY), data)


def test_labels_and_answers_must_be_as_many() -> None:
    with pytest.raises(EvaluationFailed):
        score(np.zeros(3, np.int64), np.zeros(2, np.int64))
