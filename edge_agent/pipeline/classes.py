"""Which class an answer names, by the outputs of the built-in services: "label" and "scores"."""

from __future__ import annotations

import numpy as np

from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Manifest


def scores_of(outputs: Tensors, index: int) -> Array | None:
    """Class scores of one item: the output named "scores", [n, classes]."""
    scores = outputs.get("scores")
    if scores is None or scores.ndim != 2 or index >= scores.shape[0]:
        return None
    row: Array = scores[index]
    return row


def predicted_of(manifest: Manifest, outputs: Tensors, index: int) -> str:
    """Name of the answered class: by the output "label", else by the best score; "" if neither."""
    label = outputs.get("label")
    if (
        label is not None
        and label.ndim == 1
        and index < label.shape[0]
        and label.dtype.kind in "iu"
    ):
        number = int(label[index])
    else:
        scores = scores_of(outputs, index)
        if scores is None:
            return ""
        number = int(np.argmax(scores))
    if 0 <= number < len(manifest.labels):
        return manifest.labels[number]
    return str(number)
