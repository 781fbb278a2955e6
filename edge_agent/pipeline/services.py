"""Built-in services: classify, label, boxes, grade, rule.

A service turns what the network gives into an answer and carries every other tensor, so that they
can stand one behind the other.  Shapes do not depend on what is found: boxes are padded.  An index
of -1 says that there is no such class.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edge_agent.pipeline.boxes import Detections, corners, suppress
from edge_agent.pipeline.selection import names, only
from edge_agent.pipeline.steps import service
from edge_agent.runtime.session import Array, Tensors

_UNKNOWN = -1


def _ascending(thresholds: list[float]) -> list[float]:
    if any(not lower < upper for lower, upper in pairwise(thresholds)):
        raise ValueError("thresholds must ascend")
    return thresholds


class Condition(BaseModel):
    """When a rule holds: the value lies above one bound and below the other.  NaN meets none.

    Attributes:
        tensor: [n] or [n, k].
        column: which of the k values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    column: Annotated[int, Field(ge=0)] = 0
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Condition:
        if self.above is None and self.below is None:
            raise ValueError("needs 'above' or 'below'")
        return self

    def holds(self, tensors: Tensors) -> NDArray[np.bool_]:
        """Of each item, bool [n]."""
        values = _column(tensors, self.tensor, self.column)
        result = ~np.isnan(values)
        if self.above is not None:
            result &= values > self.above
        if self.below is not None:
            result &= values < self.below
        return result


@service("classify")
def classify(
    tensors: Tensors,
    *,
    logits: str = "",
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensors:
    """Class scores and labels from logits [n, classes].

    Args:
        logits: name of the logits, which are used up; empty takes the network's only output.
        temperature: divides the logits before the softmax.

    Returns:
        `scores` FP32 [n, classes], each row summing to 1, and `label` INT64 [n], the largest.
    """
    name = only(tensors, logits, "logits")
    scaled = tensors[name].astype(np.float32) / np.float32(temperature)
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    scores = exponent / exponent.sum(axis=1, keepdims=True)
    label = scores.argmax(axis=1).astype(np.int64)
    return {**_without(tensors, name), "scores": scores, "label": label}


@service("label")
def label(
    tensors: Tensors,
    *,
    scores: str = "scores",
    top: Annotated[int, Field(ge=1, le=1000)] = 1,
    threshold: float = 0.0,
) -> Tensors:
    """The best class, or none where its score lies below `threshold`; and the `top` best.

    Args:
        scores: name of class scores [n, classes], as `classify` gives them.

    Returns:
        `label` INT64 [n], -1 for unknown; `score` FP32 [n], the best class's either way; with
        `top` above 1 also `top_labels` INT64 and `top_scores` FP32 [n, min(top, classes)], best
        first, of equals the first class first.
    """
    values = tensors[names(tensors, scores)[0]].astype(np.float32)
    order = np.argsort(-values, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(values, order, axis=1)
    known = best[:, 0] >= threshold  # NaN is unknown
    answer: Tensors = {
        "label": np.where(known, order[:, 0], _UNKNOWN).astype(np.int64),
        "score": best[:, 0],
    }
    if top > 1:
        answer |= {"top_labels": order.astype(np.int64), "top_scores": best}
    return {**tensors, **answer}


@service("boxes")
def boxes(
    tensors: Tensors,
    *,
    boxes: str = "boxes",
    scores: str = "",
    form: Literal["xyxy", "cxcywh"] = "xyxy",
    transposed: bool = False,
    threshold: float = 0.25,
    iou: Annotated[float, Field(ge=0, le=1)] = 0.45,
    most: Annotated[int, Field(ge=1, le=1000)] = 100,
) -> Tensors:
    """The boxes worth showing: by score, the rest of each class's overlapping ones suppressed.

    Args:
        boxes: name of the candidates [n, m, 4]; without `scores`, [n, m, 4 + classes].
        scores: name of the scores [n, m], or [n, m, classes].
        form: corners, or centre with width and height.
        transposed: whether the candidates stand along the last axis.
        threshold: least score of a box.
        iou: overlap above which the weaker of two boxes of a class goes.
        most: boxes per item.

    Returns:
        `boxes` FP32 [n, most, 4] as corners and `box_scores` FP32 [n, most], best first, padded
        with zeros; `box_labels` INT64 [n, most], padded with -1; `count` INT64 [n].
    """
    used = [names(tensors, boxes)[0], *(names(tensors, scores) if scores else ())]
    parts = [np.swapaxes(tensors[name], 1, 2) if transposed and tensors[name].ndim == 3
             else tensors[name] for name in used]  # fmt: skip
    places = parts[0][..., :4]
    ratings = parts[1] if scores else parts[0][..., 4:]
    if ratings.ndim == 2:
        ratings = ratings[..., None]
    if places.shape[-1] != 4 or places.ndim != 3 or places.shape[:2] != ratings.shape[:2]:
        shapes = " and ".join(str(list(part.shape)) for part in parts)
        raise ValueError(f"{shapes} are no boxes and scores")
    found = Detections.empty(len(places), most)
    for row, (place, rating) in enumerate(zip(corners(places, form), ratings, strict=True)):
        found.fill(row, *suppress(place, rating, threshold=threshold, iou=iou, most=most))
    rest = _without(tensors, *used)
    return {**rest, **found.tensors()}


@service("grade")
def grade(
    tensors: Tensors,
    *,
    thresholds: Annotated[list[float], Field(min_length=1), AfterValidator(_ascending)],
    score: str = "score",
    column: Annotated[int, Field(ge=0)] = 0,
) -> Tensors:
    """How many of the ascending `thresholds` a score reaches.

    Args:
        score: name of the scores [n] or [n, k].
        column: which of the k values.

    Returns:
        `grade` INT64 [n], 0…len(thresholds); -1 where the score is no number.
    """
    values = _column(tensors, score, column)
    reached = np.searchsorted(np.asarray(thresholds), values, side="right")
    return {**tensors, "grade": np.where(np.isnan(values), _UNKNOWN, reached).astype(np.int64)}


@service("rule")
def rule(
    tensors: Tensors,
    *,
    when: Condition,
    label: Annotated[int, Field(ge=_UNKNOWN)],
    output: str = "label",
) -> Tensors:
    """What a person knows better than the network: where `when` holds, the answer is `label`.

    A condition on an input needs that input behind the model: `model: {carry: [NAME]}`.

    Args:
        label: index of the class, -1 for unknown.
        output: name of the labels [n] that are overridden.

    Returns:
        `output`, and `overridden` BOOL [n]: where this or an earlier rule held.
    """
    labels = tensors[names(tensors, output)[0]]
    holds = when.holds(tensors)
    if holds.shape != labels.shape:
        raise ValueError(f"{len(holds)} values do not judge labels of shape {list(labels.shape)}")
    earlier = tensors.get("overridden")
    return {
        **tensors,
        output: np.where(holds, label, labels).astype(labels.dtype),
        "overridden": holds if earlier is None else holds | earlier,
    }


def _without(tensors: Tensors, *used: str) -> Tensors:
    return {name: array for name, array in tensors.items() if name not in used}


def _column(tensors: Tensors, tensor: str, column: int) -> Array:
    """One number of each item, float64 [n].

    Raises:
        KeyError: there is no such tensor.
        ValueError: it has no such column.
    """
    array = tensors[names(tensors, tensor)[0]]
    flat = array.reshape(len(array), -1)
    if column >= flat.shape[1]:
        raise ValueError(f"{tensor!r} has {flat.shape[1]} values per item, no column {column}")
    return np.asarray(flat[:, column], dtype=np.float64)
