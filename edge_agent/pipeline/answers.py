"""A pipeline's outputs as an application reads them: one object per item, names for indexes.

Outputs whose names the built-in services give mean the same everywhere:

    label, top_labels, box_labels   indexes of classes; -1 is "unknown"
    scores                          class scores [n, classes]; gives "score", that of the label
    boxes                           [n, most, 4], beside them `count` [n]: one object per box

Everything else is passed on as it is, arrays as lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import JsonValue

from edge_agent.pipeline.errors import StepFailed
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Manifest

UNKNOWN: Final = "unknown"
"""The label of an item that no class fits well enough."""

UNKNOWN_INDEX: Final = -1

_LABELS: Final = frozenset(("label", "top_labels", "box_labels"))
_BOX_PARTS: Final = {"boxes": "box", "box_scores": "score", "box_labels": "label"}


def answer(outputs: Tensors, manifest: Manifest) -> list[dict[str, JsonValue]]:
    """One JSON-ready object per item.

    Args:
        outputs: what the pipeline answered, each [n, …], n the same.

    Raises:
        StepFailed: a label's index has no name in the manifest, or the outputs differ in their
            number of items.
    """
    count = _items(outputs)
    columns = {name: _column(name, array, manifest.labels) for name, array in outputs.items()}
    if "score" not in outputs:
        columns |= _score(outputs)
    items: list[dict[str, JsonValue]] = [
        {name: column[row] for name, column in columns.items()} for row in range(count)
    ]
    if "boxes" in outputs and "count" in outputs:
        for item in items:
            _gather_boxes(item)
    return items


def _items(outputs: Tensors) -> int:
    """How many items every output has."""
    for name, array in outputs.items():
        if not array.ndim:
            raise StepFailed("answer", f"output {name!r} is a single value, not one per item")
    counts = {name: len(array) for name, array in outputs.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise StepFailed("answer", f"the outputs differ in their number of items: {told}")
    return next(iter(counts.values()), 0)


def _column(name: str, array: Array, labels: Sequence[str]) -> list[JsonValue]:
    if name in _LABELS and labels and array.dtype.kind in "iu":
        return _named(name, array, labels)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _finite(array.tolist())
    if array.dtype.kind in "OSU":
        return _text(array.tolist())
    return list(array.tolist())


def _named(name: str, array: Array, labels: Sequence[str]) -> list[JsonValue]:
    if array.size and (array.min() < UNKNOWN_INDEX or array.max() >= len(labels)):
        raise StepFailed(
            "answer", f"{name!r} has index {array.max()}, the manifest names {len(labels)} labels"
        )
    names = np.array([*labels, UNKNOWN], dtype=object)  # index -1 finds the last
    return list(names[array].tolist())


def _score(outputs: Tensors) -> dict[str, list[JsonValue]]:
    """The label's score, if the outputs tell it; of an unknown item the largest."""
    scores, labels = outputs.get("scores"), outputs.get("label")
    if scores is None or labels is None or scores.ndim != 2 or scores.shape[1] == 0:
        return {}
    if labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
        return {}
    chosen = np.where(labels < 0, scores.argmax(axis=1), labels)
    if chosen.max(initial=0) >= scores.shape[1]:
        return {}
    return {"score": _finite(np.take_along_axis(scores, chosen[:, None], axis=1)[:, 0].tolist())}


def _gather_boxes(item: dict[str, JsonValue]) -> None:
    count = item.pop("count")
    parts = {
        short: values
        for name, short in _BOX_PARTS.items()
        if isinstance(values := item.pop(name, None), list)
    }
    if isinstance(count, int):
        item["boxes"] = [
            {short: values[index] for short, values in parts.items()}
            for index in range(min(count, *map(len, parts.values())))
        ]


def _finite(values: list[JsonValue]) -> list[JsonValue]:
    """NaN and infinity as null: JSON has neither."""
    return [
        _finite(value)
        if isinstance(value, list)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for value in values
    ]


def _text(values: list[object]) -> list[JsonValue]:
    return [
        _text(value)
        if isinstance(value, list)
        else value.decode("utf-8", "backslashreplace")
        if isinstance(value, bytes)
        else str(value)
        for value in values
    ]
