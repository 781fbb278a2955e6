"""How good a variant is: its answers on labelled data, through the pipeline that will be served.

Owns the pass over the data and the metrics of classification.

Rules:
    * Answers come from `edge_agent.pipeline`, so pre- and post-processing are judged with the
      network.
    * An item that a checker refuses counts as answered wrongly; it is also counted apart.
    * macro-F1 is the mean over the classes that occur in the labels or in the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edge_agent.pipeline import Array, Pipeline, PipelineError, Rejected, Tensors
from optimizer.budget import MetricName
from optimizer.errors import EvaluationFailed

REJECTED: Final = -1
"""Stands for the label of an item that a checker refused."""

DEFAULT_BATCH: Final = 64


@dataclass(frozen=True)
class EvalData:
    """Labelled data.

    Attributes:
        inputs: inputs of the pipeline, [n, ...] each.
        labels: int64 [n], index of the class.
        names: class names by index; the index itself where empty.
    """

    inputs: Tensors
    labels: NDArray[np.int64]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a pipeline said.

    Attributes:
        labels: int64 [n]; `REJECTED` where a checker refused.
        scores: [n, classes], or `None` where the pipeline has no output of that name; rows of
            refused items are NaN.
    """

    labels: NDArray[np.int64]
    scores: Array | None


class Accuracy(BaseModel):
    """Metrics of a variant on `n` items, each 0..1.

    Attributes:
        recall: by class name; `None` for a class that the labels do not have.
        rejected: items that a checker refused.
        predictions: index of the answered class by item, `REJECTED` where refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    recall: dict[str, float | None]
    n: int
    rejected: int = 0
    predictions: tuple[int, ...] = ()

    def metric(self, name: MetricName) -> float:
        return self.metrics()[name]

    def metrics(self) -> dict[MetricName, float]:
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "balanced_accuracy": self.balanced_accuracy,
        }


def evaluate(pipeline: Pipeline, dataset: EvalData, batch: int = DEFAULT_BATCH) -> Accuracy:
    """Answer all of `dataset` and score the answers.

    Raises:
        EvaluationFailed: the pipeline gives neither labels nor scores, or fails on the data.
    """
    answers = answer(pipeline, dataset.inputs, batch)
    return score(answers.labels, dataset.labels, dataset.names)


def answer(pipeline: Pipeline, inputs: Tensors, batch: int = DEFAULT_BATCH) -> Answers:
    """The pipeline's answers on `inputs`, in their order.

    Raises:
        EvaluationFailed: the pipeline gives neither labels nor scores, scores that are no numbers,
            or fails on the data.
    """
    labels: list[NDArray[np.int64]] = []
    scores: list[Array | None] = []
    for part in batches(inputs, batch):
        try:
            outputs: Tensors | None = pipeline.run(part).tensors
        except Rejected:
            if row_count(part) > 1:  # which of them it was is only known one at a time
                single = answer(pipeline, part, 1)
                labels.append(single.labels)
                scores.append(single.scores)
                continue
            outputs = None
        except PipelineError as error:
            raise EvaluationFailed(f"the pipeline fails on the data: {error}") from error
        _require_numbers(outputs)
        labels.append(_labels(outputs))
        scores.append(None if outputs is None else outputs.get("scores"))
    if not labels:
        raise EvaluationFailed("there is no data to evaluate on")
    return Answers(np.concatenate(labels), _joined(scores, [len(part) for part in labels]))


def _require_numbers(outputs: Tensors | None) -> None:
    scores = None if outputs is None else outputs.get("scores")
    if scores is not None and scores.dtype.kind == "f" and np.isnan(scores).any():
        raise EvaluationFailed(
            "scores of the pipeline are NaN: the network's outputs are no numbers"
        )


def score(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], names: Sequence[str] = ()
) -> Accuracy:
    """Metrics of predicted class indices against the right ones, both [n].

    Args:
        names: class names by index; the index itself where empty.

    Raises:
        EvaluationFailed: there are not as many labels as predictions, or none.
    """
    if len(labels) != len(predictions) or len(labels) == 0:
        raise EvaluationFailed(f"{len(predictions)} answers, {len(labels)} labels to judge them by")
    present = np.unique(labels)
    answered = predictions[predictions != REJECTED]
    f1 = [_f1(labels, predictions, int(index)) for index in np.union1d(present, answered)]
    recall: dict[str, float | None] = dict.fromkeys(names)
    for index in present:
        name = names[index] if index < len(names) else str(index)
        recall[name] = float(np.mean(predictions[labels == index] == index))
    return Accuracy(
        accuracy=float(np.mean(predictions == labels)),
        macro_f1=float(np.mean(f1)),
        balanced_accuracy=float(np.mean([value for value in recall.values() if value is not None])),
        recall=recall,
        n=len(labels),
        rejected=int(np.sum(predictions == REJECTED)),
        predictions=tuple(int(label) for label in predictions),
    )


def select(data: EvalData, rows: int | None) -> EvalData:
    """Some of the items; all where `rows` is `None` or as many as there are."""
    count = row_count(data.inputs)
    if rows is None or rows >= count:
        return data
    chosen = spread(count, rows)
    return EvalData(
        {name: array[chosen] for name, array in data.inputs.items()},
        data.labels[chosen],
        data.names,
    )


def spread(count: int, rows: int) -> NDArray[np.int64]:
    """`rows` of `count` indices, evenly spread: of data sorted by class all classes are kept."""
    return np.unique(np.linspace(0, count - 1, min(rows, count)).astype(np.int64))


def batches(inputs: Tensors, batch: int) -> Iterator[Tensors]:
    """`inputs` in parts of `batch` items, the last one shorter."""
    for start in range(0, row_count(inputs), batch):
        yield {name: array[start : start + batch] for name, array in inputs.items()}


def row_count(inputs: Tensors) -> int:
    """Length of the batch axis that the tensors share."""
    return min((len(array) for array in inputs.values()), default=0)


def _labels(outputs: Tensors | None) -> NDArray[np.int64]:
    if outputs is None:
        return np.array([REJECTED], dtype=np.int64)
    if "label" in outputs:
        return np.asarray(outputs["label"].reshape(-1), dtype=np.int64)
    if "scores" in outputs:
        return np.asarray(outputs["scores"].argmax(axis=1), dtype=np.int64)
    have = ", ".join(outputs) or "nothing"
    raise EvaluationFailed(
        f"the pipeline answers with {have}; an output 'label' or 'scores' is needed"
    )


def _joined(parts: Sequence[Array | None], lengths: Sequence[int]) -> Array | None:
    """Scores of all parts; rows of refused items are NaN."""
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    return np.concatenate(
        [
            np.full((length, *known.shape[1:]), np.nan, dtype=known.dtype) if part is None else part
            for part, length in zip(parts, lengths, strict=True)
        ]
    )


def _f1(wanted: NDArray[np.int64], given: NDArray[np.int64], index: int) -> float:
    """2·TP / (2·TP + FP + FN) of one class."""
    hits = int(np.sum((wanted == index) & (given == index)))
    total = int(np.sum(wanted == index) + np.sum(given == index))
    return 2 * hits / total if total else 0.0
