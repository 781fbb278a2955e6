from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.pipeline import Array, Rejected
from edge_agent.pipeline.builtin import center_crop, resize, to_chw, to_float


def noise(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).uniform(0, 255, shape).astype(np.float32)


sides = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides)
def test_resizing_is_what_pillow_does(before: int, width: int, after: int, wide: int) -> None:
    image = noise(before, width)
    expected = Image.fromarray(image).resize((wide, after), Image.Resampling.BILINEAR)
    actual = resize({"x": image[None]}, height=after, width=wide)["x"]
    np.testing.assert_allclose(actual[0], np.asarray(expected), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(8, 4), (5, 9), (9, 5), (1, 3), (3, 1)])
def test_without_antialias_it_interpolates_between_the_two_nearest(before: int, after: int) -> None:
    line = noise(before)
    positions = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    expected = np.interp(positions, np.arange(before), line)
    actual = resize({"x": line[None, None]}, height=1, width=after, antialias=False)["x"]
    np.testing.assert_allclose(actual[0, 0], expected, rtol=1e-5)


def test_layouts_agree_and_bytes_become_floats_of_the_same_range() -> None:
    image = noise(2, 9, 7, 3).astype(np.uint8)
    last = resize({"x": image}, height=4, width=5)["x"]
    first = resize({"x": image.transpose(0, 3, 1, 2)}, height=4, width=5, layout="CHW")["x"]
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, rtol=1e-6)
    assert last.dtype == np.float32
    assert 0 <= last.min() < last.max() <= 255


def test_an_image_of_the_right_size_stays() -> None:
    image = noise(1, 4, 5)
    np.testing.assert_array_equal(resize({"x": image}, height=4, width=5)["x"], image)


def test_a_crop_is_the_middle() -> None:
    image = np.arange(30).reshape(1, 5, 6)
    cropped = center_crop({"x": image}, height=2, width=4)["x"]
    np.testing.assert_array_equal(cropped, image[:, 1:3, 1:5])
    channels = center_crop({"x": image[:, None]}, height=2, width=4, layout="CHW")["x"]
    np.testing.assert_array_equal(channels[:, 0], cropped)


def test_an_image_too_small_for_its_crop_is_the_client_s_fault() -> None:
    with pytest.raises(Rejected, match="image_too_small: 5×6, at least 5×7 is needed"):
        center_crop({"x": np.zeros((1, 5, 6, 3))}, height=5, width=7)


def test_bytes_become_shares_of_one() -> None:
    result = to_float({"x": np.array([[0, 51, 255]], np.uint8)})["x"]
    np.testing.assert_array_equal(result, np.array([[0, 0.2, 1]], np.float32))


def test_channels_go_first_in_rows_that_lie_in_order() -> None:
    image = noise(2, 4, 5, 3)
    result = to_chw({"x": image})["x"]
    np.testing.assert_array_equal(result, image.transpose(0, 3, 1, 2))
    assert result.flags.c_contiguous
    assert to_chw({"x": image[..., 0]})["x"].shape == (2, 1, 4, 5)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 3, 4, 5)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    for step in (to_chw, lambda tensors: resize(tensors, height=2, width=2)):
        with pytest.raises(ValueError, match="3 or 4 axes"):
            step({"x": np.zeros(shape)})
