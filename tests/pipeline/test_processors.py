from __future__ import annotations

import numpy as np
import pytest
from pydantic import JsonValue

from edge_agent.pipeline import Array, Rejected, StepConfigError, registered
from edge_agent.pipeline.builtin import cast, normalize, rename, reshape, scale
from edge_agent.pipeline.steps import BoundStep, bind
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.wire.manifest import Datatype, StepSpec


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


def bound(name: str, **config: JsonValue) -> BoundStep:
    return bind(StepSpec(name=name, config=config), registered())


def test_normalize_does_not_take_the_batch_for_the_channels() -> None:
    with pytest.raises(StepConfigError, match="axis 0 is the batch"):
        bound("normalize", mean=[0], std=[1], axis=0)
    for empty in ({"mean": [], "std": [1]}, {"mean": [0], "std": []}):
        with pytest.raises(StepConfigError, match="at least 1 item"):
            bound("normalize", **empty)  # type: ignore[arg-type]
    for axis in (-2, 2, -3):
        with pytest.raises(ValueError, match=f"no channel axis {axis} in the shape"):
            normalize({"x": np.ones((3, 2))}, mean=[1, 2, 3], std=[1], axis=axis)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_normalize_takes_one_value_or_one_per_channel(channels: int) -> None:
    x = {"x": np.ones((3, 5, channels), np.uint8)}
    with pytest.raises(ValueError, match=f"3 values for {channels} channels along axis -1"):
        normalize(x, mean=[1, 2, 3], std=[1])
    with pytest.raises(ValueError, match=f"3 values for {channels} channels"):
        normalize(x, mean=[1], std=[1, 2, 3])
    assert normalize(x, mean=[0], std=[2])["x"].tolist() == np.full((3, 5, channels), 0.5).tolist()
    assert normalize({"x": np.ones(3)}, mean=[0], std=[2])["x"].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("values", "datatype", "expected"),
    [
        (np.float32([255.9, -0.9]), "UINT8", [255, 0]),
        (np.float16([127.5, -128.5]), "INT8", [127, -128]),
        (np.float32([-(2.0**63)]), "INT64", [-(2**63)]),
        (np.float16([65504]), "UINT64", [65504]),
        (np.array([2**53 + 1]), "FP64", [2**53]),
        (np.float32([np.nan, np.inf, 1]), "FP16", [np.nan, np.inf, 1]),
        (np.array([True]), "INT8", [1]),
        (np.float32([0, 0.5]), "BOOL", [False, True]),
        (np.zeros(0, np.float32), "UINT8", []),
        (np.zeros(0, np.int64), "UINT8", []),
    ],
)
def test_cast_keeps_what_fits(values: Array, datatype: Datatype, expected: list[float]) -> None:
    result = cast({"x": values}, datatype=datatype)["x"]
    assert result.dtype == numpy_dtype(datatype)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (np.float32([0, 256]), "UINT8"),
        (np.float32([-1]), "UINT64"),
        (np.float16([np.inf]), "UINT64"),
        (np.float64([np.nan]), "INT32"),
        (np.float32([2.0**63]), "INT64"),
        (np.float32([2.0**31]), "INT32"),
        (np.float64([2.0**64]), "UINT64"),
        (np.array([300]), "UINT8"),
        (np.array([-1]), "UINT64"),
        (np.uint64([2**63]), "INT64"),
        (np.float32([70_000]), "FP16"),
        (np.array([70_000]), "FP16"),
        (np.float64([1e300]), "FP32"),
    ],
)
def test_cast_refuses_what_does_not_fit(values: Array, datatype: Datatype) -> None:
    with pytest.raises(Rejected, match=f"cast_out_of_range: a value does not fit {datatype}"):
        cast({"x": values}, datatype=datatype)


def test_cast_is_for_numbers() -> None:
    with pytest.raises(ValueError, match="only numbers are cast"):
        cast({"x": np.array([b"1"], object)}, datatype="FP32")
    with pytest.raises(ValueError, match="only numbers are cast"):
        cast({"x": np.ones(1)}, datatype="BYTES")
