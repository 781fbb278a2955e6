from __future__ import annotations

import numpy as np
import pytest

from edge_agent.pipeline.builtin import cast, normalize, rename, reshape, scale


def test_processors_change_the_named_tensor_and_carry_the_rest() -> None:
    tensors = {"x": np.array([[2, 4]], np.uint8), "y": np.array([[1.0]])}
    scaled = scale(tensors, factor=0.5, tensor="x")
    assert scaled["x"].tolist() == [[1, 2]]
    assert scaled["x"].dtype == np.float32
    assert scaled["y"] is tensors["y"]
    assert cast(tensors, datatype="FP64", tensor="x")["x"].dtype == np.float64
    assert reshape(tensors, shape=[2, 1], tensor="x")["x"].shape == (1, 2, 1)
    assert list(rename(tensors, names={"x": "z"})) == ["z", "y"]


def test_normalize_works_per_channel() -> None:
    image = np.stack([np.full((2, 2), 3.0), np.full((2, 2), 10.0)])[None]  # [1, 2, 2, 2]
    result = normalize({"x": image}, mean=[1, 2], std=[2, 4], axis=1)["x"]
    assert result[0, 0].max() == 1
    assert result[0, 1].max() == 2


def test_a_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match="no tensor 'z'; there are x, y"):
        scale({"x": np.ones(1), "y": np.ones(1)}, factor=2, tensor="z")
