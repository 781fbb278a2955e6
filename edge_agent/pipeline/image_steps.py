"""Built-in processors of images: image.resize, image.center_crop, image.to_float, image.to_chw.

Batches of images are [n, height, width] or [n, height, width, channels]; where the channels stand
first, `layout: CHW` says so.  numpy does it all, so that a device needs no imaging library and
training, evaluation and serving compute the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_agent.pipeline.errors import Rejected
from edge_agent.pipeline.selection import Layout, image_axes, replaced
from edge_agent.pipeline.steps import processor
from edge_agent.runtime.session import Array, Tensors

Side = Annotated[int, Field(ge=1, le=8192)]
"""Pixels along one side of an image."""

_CACHED_SIZES: Final = 64


@processor("image.resize")
def resize(
    tensors: Tensors,
    *,
    height: Side,
    width: Side,
    antialias: bool = True,
    layout: Layout = "HWC",
    tensor: str = "",
) -> Tensors:
    """Resize to `height`×`width`, bilinear, as FP32 in the range of the input.

    Pixel centres lie at ½.  With `antialias` the filter widens where the image shrinks, as Pillow
    and torchvision do; without, as OpenCV's INTER_LINEAR.
    """

    def apply(array: Array) -> Array:
        vertical, horizontal = image_axes(array, layout)
        result = array.astype(np.float32, copy=False)
        # whole lines lie together in memory, so the heights go first
        for axis, size in ((vertical, height), (horizontal, width)):
            if result.shape[axis] != size:
                result = _resample(result, axis, size, antialias)
        return result

    return replaced(tensors, tensor, apply)


@processor("image.center_crop")
def center_crop(
    tensors: Tensors, *, height: Side, width: Side, layout: Layout = "HWC", tensor: str = ""
) -> Tensors:
    """Cut `height`×`width` out of the middle; an odd rest is cut off below and to the right.

    Raises:
        Rejected: the image is smaller ("image_too_small").
    """

    def apply(array: Array) -> Array:
        axes = image_axes(array, layout)
        index: list[slice] = [slice(None)] * array.ndim
        for axis, size in zip(axes, (height, width), strict=True):
            spare = array.shape[axis] - size
            if spare < 0:
                have = "×".join(str(array.shape[each]) for each in axes)
                raise Rejected("image_too_small", f"{have}, at least {height}×{width} is needed")
            index[axis] = slice(spare // 2, spare // 2 + size)
        return array[tuple(index)]

    return replaced(tensors, tensor, apply)


@processor("image.to_float")
def to_float(tensors: Tensors, *, full: float = 255.0, tensor: str = "") -> Tensors:
    """0…`full` as FP32 0…1."""
    return replaced(tensors, tensor, lambda array: array.astype(np.float32) / np.float32(full))


@processor("image.to_chw")
def to_chw(tensors: Tensors, *, tensor: str = "") -> Tensors:
    """[n, h, w, c] as [n, c, h, w], and [n, h, w] as [n, 1, h, w], row-major."""

    def apply(array: Array) -> Array:
        image_axes(array, "HWC")
        if array.ndim == 3:
            return array.reshape(len(array), 1, *array.shape[1:])
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))

    return replaced(tensors, tensor, apply)


def _resample(array: NDArray[np.float32], axis: int, size: int, antialias: bool) -> Array:
    """`array` with `size` samples along `axis`.

    Tap by tap instead of a matrix product: the work grows with the image, not with its square, and
    no item's rounding depends on what stands beside it.
    """
    indices, weights = _taps(array.shape[axis], size, antialias)
    shape = [1] * array.ndim
    shape[axis] = size
    result: NDArray[np.float32] = array.take(indices[0], axis=axis)
    result *= weights[0].reshape(shape)
    part = np.empty_like(result)
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        # the indices lie inside: "clip" only spares numpy a buffer of its own
        array.take(index, axis=axis, out=part, mode="clip")
        part *= weight.reshape(shape)
        result += part
    return result


@lru_cache(maxsize=_CACHED_SIZES)
def _taps(before: int, after: int, antialias: bool) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Source positions and their weights, [taps, after] each; each column sums to 1.

    Source: the triangle filter of Pillow's `Resample.c`, with its support of max(1, before/after).
    """
    scale = before / after
    support = max(1.0, scale) if antialias else 1.0
    centres = (np.arange(after) + 0.5) * scale
    taps = min(before, int(np.ceil(support)) * 2 + 1)
    first = np.clip(np.floor(centres - support + 0.5), 0, before - taps).astype(np.intp)
    indices = first + np.arange(taps)[:, None]
    if antialias:
        weights = np.clip(1.0 - np.abs(indices + 0.5 - centres) / support, 0.0, None)
    else:  # beyond the edge the outermost pixel goes on
        inside = np.clip(centres, 0.5, before - 0.5)
        weights = np.clip(1.0 - np.abs(indices + 0.5 - inside), 0.0, None)
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    return indices[used], weights[used].astype(np.float32)
