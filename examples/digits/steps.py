"""The project's own pipeline steps; this file travels to the devices."""

from __future__ import annotations

import numpy as np

from edge_agent.pipeline import Rejected, Tensors, checker, processor


@checker("digits.ink")
def ink(tensors: Tensors, *, least: float = 8.0) -> None:
    """Refuse an image with next to nothing on it: whatever was answered would be a guess."""
    if tensors["image"].sum(axis=(1, 2)).min() < least:
        raise Rejected("blank", f"an image holds less ink than {least:g}")


@processor("digits.prepare")
def prepare(tensors: Tensors, *, full: float = 16.0) -> Tensors:
    """Images [n, 8, 8] in 0..full as the network's `x` FP32 [n, 1, 8, 8] in 0..1."""
    return {"x": (tensors["image"] / np.float32(full)).astype(np.float32)[:, None]}
