"""Boxes of a detector: their forms, and non-maximum suppression for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime.session import Array, Tensors

MAX_CANDIDATES: Final = 3000
"""Only the best are compared with each other, so that noise cannot take seconds."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in a batch, padded to the same number of boxes."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def empty(cls, items: int, most: int) -> Detections:
        return cls(
            np.zeros((items, most, 4), np.float32),
            np.zeros((items, most), np.float32),
            np.full((items, most), -1, np.int64),
            np.zeros(items, np.int64),
        )

    def fill(self, row: int, boxes: Array, scores: Array, labels: Array) -> None:
        """Set what was found in item `row`."""
        found = len(boxes)
        self.boxes[row, :found] = boxes
        self.scores[row, :found] = scores
        self.labels[row, :found] = labels
        self.count[row] = found

    def tensors(self) -> Tensors:
        return {
            "boxes": self.boxes,
            "box_scores": self.scores,
            "box_labels": self.labels,
            "count": self.count,
        }


def corners(boxes: Array, form: str) -> NDArray[np.float32]:
    """[…, 4] of `form` "xyxy" or "cxcywh" as left, top, right, bottom."""
    values = boxes.astype(np.float32)
    if form == "xyxy":
        return values
    half = values[..., 2:] / np.float32(2)
    return np.concatenate([values[..., :2] - half, values[..., :2] + half], axis=-1)


def suppress(
    boxes: Array, scores: Array, *, threshold: float, iou: float, most: int
) -> tuple[Array, Array, Array]:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: float32 [m, 4], corners.
        scores: [m, classes]; each box counts for its best class.
        threshold: least score; a box with NaN in it never counts.
        iou: overlap above which the weaker of two boxes of a class goes.

    Returns:
        Boxes [k, 4], scores [k] and labels [k], k ≤ `most`, best first.
    """
    if not scores.size:
        return boxes[:0], np.zeros(0, np.float32), np.zeros(0, np.int64)
    labels = scores.argmax(axis=1)
    best = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0].astype(np.float32)
    candidates = np.flatnonzero((best >= threshold) & np.isfinite(boxes).all(axis=1))
    order = candidates[np.argsort(-best[candidates], kind="stable")][:MAX_CANDIDATES]
    kept: list[int] = []
    while order.size and len(kept) < most:
        first, order = int(order[0]), order[1:]
        kept.append(first)
        rivals = np.flatnonzero(labels[order] == labels[first])
        weaker = overlap(boxes[first], boxes[order[rivals]]) > iou
        order = np.delete(order, rivals[weaker])
    return boxes[kept], best[kept], labels[kept].astype(np.int64)


def overlap(box: Array, others: Array) -> NDArray[np.float64]:
    """Intersection over union of `box` [4] with each of `others` [k, 4]; 0 for empty boxes."""
    left, top, right, bottom = box.astype(np.float64)
    lefts, tops, rights, bottoms = others.astype(np.float64).T
    widths = np.minimum(right, rights) - np.maximum(left, lefts)
    heights = np.minimum(bottom, bottoms) - np.maximum(top, tops)
    shared = np.maximum(widths, 0.0) * np.maximum(heights, 0.0)
    area = max(right - left, 0.0) * max(bottom - top, 0.0)
    areas = np.maximum(rights - lefts, 0.0) * np.maximum(bottoms - tops, 0.0)
    union = area + areas - shared
    result: NDArray[np.float64] = np.zeros_like(shared)
    np.divide(shared, union, out=result, where=union > 0)
    return result
