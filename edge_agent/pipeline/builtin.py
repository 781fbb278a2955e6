"""Built-in steps.  Each works on one named tensor, or on all where no name is given.

checkers    check.finite, check.range, check.shape, check.brightness, check.blur, check.outlier,
            check.energy
processors  scale, normalize, cast, reshape, rename, image.resize, image.center_crop,
            image.to_float, image.to_chw
services    classify, label, boxes, grade, rule

What a step makes of an item does not depend on the items beside it.
"""

from __future__ import annotations

from edge_agent.pipeline.checkers import (
    check_blur,
    check_brightness,
    check_energy,
    check_finite,
    check_outlier,
    check_range,
    check_shape,
)
from edge_agent.pipeline.image_steps import center_crop, resize, to_chw, to_float
from edge_agent.pipeline.processors import cast, normalize, rename, reshape, scale
from edge_agent.pipeline.services import boxes, classify, grade, label, rule

__all__ = [
    "boxes",
    "cast",
    "center_crop",
    "check_blur",
    "check_brightness",
    "check_energy",
    "check_finite",
    "check_outlier",
    "check_range",
    "check_shape",
    "classify",
    "grade",
    "label",
    "normalize",
    "rename",
    "reshape",
    "resize",
    "rule",
    "scale",
    "to_chw",
    "to_float",
]
