"""What a built-in makes of an item does not depend on the items beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.pipeline import Array, Rejected, Tensors, registered
from edge_agent.pipeline.outlier import fit
from edge_agent.pipeline.steps import BoundStep, bind
from edge_agent.wire.manifest import StepSpec

Make = Callable[[np.random.Generator, int], Tensors]


def floats(*shape: int, scale: float = 1.0) -> Make:
    return lambda rng, count: {"x": rng.normal(0, scale, (count, *shape)).astype(np.float32)}


def pixels(*shape: int) -> Make:
    return lambda rng, count: {"x": rng.integers(0, 256, (count, *shape)).astype(np.uint8)}


def uneven(rng: np.random.Generator, count: int) -> Tensors:
    """Rows of which one may dwarf the others."""
    level = rng.choice([0.0, 500.0, -500.0], (count, 1))
    return {"x": (level + rng.normal(0, 4, (count, 10))).astype(np.float32)}


def scored(rng: np.random.Generator, count: int) -> Tensors:
    scores = rng.uniform(size=(count, 5)).astype(np.float32)
    return {"scores": scores, "label": scores.argmax(axis=1), "x": scores[:, :2]}


def candidates(rng: np.random.Generator, count: int) -> Tensors:
    boxes = np.sort(rng.uniform(0, 20, (count, 30, 4)).astype(np.float32), axis=-1)
    scores = rng.uniform(size=(count, 30, 3)).astype(np.float32)
    return {"boxes": boxes[..., [0, 1, 2, 3]], "scores": scores}


TRAINED = fit(np.random.default_rng(5).normal(0, 1, (200, 4))).model_dump()
VALUES = fit(np.random.default_rng(5).normal(0, 1, (200, 4)), "values").model_dump()

CASES: dict[str, list[tuple[dict[str, Any], Make]]] = {
    "check.finite": [
        ({}, lambda rng, n: {"x": rng.choice([1.0, 2.0, 3.0, np.nan], (n, 2)).astype("f4")})
    ],
    "check.range": [({"min": -1.5, "max": 1.5}, floats(2))],
    "check.shape": [({"shape": [3, -1]}, floats(3, 2)), ({"shape": [4]}, floats(3))],
    "check.brightness": [({"min": 120, "max": 135}, pixels(4, 4, 3))],
    "check.blur": [
        ({"min": 20_000}, pixels(5, 5, 3)),
        ({"min": 2, "layout": "CHW"}, floats(2, 4, 4)),
    ],
    "check.outlier": [
        ({"reference": TRAINED, "max": 3.4}, floats(4)),
        ({"reference": VALUES, "max": 2.0}, floats(2, 2)),
    ],
    "check.energy": [({"max": -2.0}, floats(6)), ({"max": 0.0}, uneven)],
    "scale": [({"factor": 0.0625}, pixels(3))],
    "normalize": [
        ({"mean": [1, 2, 3], "std": [4, 5, 6]}, floats(2, 3, scale=9)),
        ({"mean": [1, 2], "std": [4], "axis": 1}, floats(2, 3, scale=9)),
        ({"mean": [1], "std": [4, 5, 6], "axis": -1}, floats(3, scale=9)),
        ({"mean": [1], "std": [4]}, floats()),
    ],
    "cast": [
        ({"datatype": "FP16"}, floats(3)),
        ({"datatype": "FP16"}, floats(2, scale=30_000)),
        ({"datatype": "INT8"}, floats(2, scale=60)),
        ({"datatype": "UINT8"}, lambda rng, n: {"x": rng.integers(-20, 270, (n, 2))}),
        (
            {"datatype": "INT32"},
            lambda rng, n: {"x": rng.choice([1.5, -2.5, 7.0, np.nan], (n, 2)).astype("f4")},
        ),
    ],
    "reshape": [({"shape": [3, 2]}, floats(6))],
    "rename": [({"names": {"x": "y"}}, floats(2))],
    "image.resize": [
        ({"height": 5, "width": 7}, pixels(13, 11, 3)),
        ({"height": 9, "width": 3, "antialias": False}, pixels(4, 8)),
        ({"height": 4, "width": 4, "layout": "CHW"}, floats(3, 9, 2)),
    ],
    "image.center_crop": [({"height": 2, "width": 3}, pixels(5, 4, 3))],
    "image.to_float": [({}, pixels(2, 2, 3))],
    "image.to_chw": [({}, pixels(2, 3, 3)), ({}, pixels(2, 3))],
    "classify": [({"temperature": 2.0}, floats(10, scale=4)), ({}, uneven)],
    "label": [({"top": 3, "threshold": 0.8}, scored)],
    "boxes": [({"scores": "scores", "threshold": 0.5, "most": 6}, candidates)],
    "grade": [({"thresholds": [0.2, 0.6], "score": "scores", "column": 3}, scored)],
    "rule": [({"when": {"tensor": "x", "above": 0.5}, "label": 4}, scored)],
}  # fmt: skip

FLAT = [
    pytest.param(name, config, make, id=f"{name}-{index}")
    for name, cases in CASES.items()
    for index, (config, make) in enumerate(cases)
]


def test_every_built_in_is_among_the_cases() -> None:
    assert set(CASES) == {
        name for name, step in registered().items() if step.function.__module__.startswith("edge_")
    }


def accepted(step: BoundStep, tensors: Tensors) -> Tensors | str:
    """What the step gives, or the reason it refuses for."""
    try:
        returned = step.call(tensors)
    except Rejected as refused:
        return refused.reason
    return tensors if returned is None else returned


@pytest.mark.parametrize(("name", "config", "make"), FLAT)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_a_batch_gives_what_its_items_give(
    name: str, config: dict[str, Any], make: Make, seed: int, count: int
) -> None:
    step = bind(StepSpec(name=name, config=config), registered())
    batch = make(np.random.default_rng(seed), count)
    for array in batch.values():
        array.setflags(write=False)  # as the views of a request are
    together = accepted(step, batch)
    alone = [
        accepted(step, {key: array[row : row + 1] for key, array in batch.items()})
        for row in range(count)
    ]
    refused = {each for each in alone if isinstance(each, str)}
    if isinstance(together, str):
        assert together in refused
        return
    assert not refused
    for key, array in together.items():
        parts: list[Array] = [each[key] for each in alone if not isinstance(each, str)]
        expected = np.concatenate(parts)
        assert array.dtype == expected.dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(array, expected)
