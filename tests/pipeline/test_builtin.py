from __future__ import annotations

import numpy as np
import pytest

from edge_agent.pipeline import Rejected, registered
from edge_agent.pipeline.builtin import (
    cast,
    check_finite,
    check_range,
    classify,
    normalize,
    rename,
    reshape,
    scale,
)


def test_classify_is_a_softmax_and_its_argmax() -> None:
    logits = np.array([[0.0, np.log(3.0)], [2.0, 2.0]], np.float32)
    answer = classify({"logits": logits})
    np.testing.assert_allclose(answer["scores"], [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    assert answer["label"].tolist() == [1, 0]
    assert (answer["scores"].dtype, answer["label"].dtype) == (np.float32, np.int64)


def test_classify_survives_huge_logits() -> None:
    scores = classify({"logits": np.array([[1e30, -1e30, 0.0]], np.float32)})["scores"]
    np.testing.assert_array_equal(scores, [[1, 0, 0]])


def test_a_temperature_flattens_scores_and_keeps_the_label() -> None:
    logits = np.array([[1.0, 3.0]], np.float32)
    sharp, flat = classify({"l": logits}), classify({"l": logits}, temperature=4.0)
    assert flat["scores"][0, 1] < sharp["scores"][0, 1]
    assert flat["label"] == sharp["label"]


def test_classify_of_several_outputs_wants_one_named() -> None:
    outputs = {"a": np.zeros((1, 2), "f4"), "b": np.ones((1, 2), "f4")}
    with pytest.raises(ValueError, match="several outputs"):
        classify(outputs)
    assert classify(outputs, logits="b")["scores"].shape == (1, 2)


def test_a_range_includes_its_ends_and_excludes_nan() -> None:
    check_range({"x": np.array([0.0, 16.0])}, min=0, max=16)
    for value in (-0.1, 16.1, np.nan):
        with pytest.raises(Rejected, match="out_of_range"):
            check_range({"x": np.array([1.0, value])}, min=0, max=16)


def test_checks_look_at_the_named_tensor_only() -> None:
    tensors = {"x": np.array([1.0]), "y": np.array([np.inf])}
    check_finite(tensors, tensor="x")
    check_range(tensors, min=0, max=2, tensor="x")
    with pytest.raises(Rejected):
        check_finite(tensors)


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


def test_every_built_in_is_registered_under_its_documented_name() -> None:
    names = {"check.finite", "check.range", "scale", "normalize", "cast", "reshape", "rename"}
    assert names | {"classify"} <= set(registered())
