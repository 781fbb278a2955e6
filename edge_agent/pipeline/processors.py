"""Built-in processors: scale, normalize, cast, reshape, rename.  Those of images: `image_steps`."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import AfterValidator, Field

from edge_agent.pipeline.errors import Rejected
from edge_agent.pipeline.selection import replaced
from edge_agent.pipeline.steps import processor
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Datatype


def _not_the_batch(axis: int) -> int:
    if axis == 0:
        raise ValueError("axis 0 is the batch, not the channels")
    return axis


ChannelAxis: TypeAlias = Annotated[int, AfterValidator(_not_the_batch)]


@processor("scale")
def scale(tensors: Tensors, *, factor: float, tensor: str = "") -> Tensors:
    """Multiply by `factor`, in float32."""
    return replaced(tensors, tensor, lambda array: array.astype(np.float32) * np.float32(factor))


@processor("normalize")
def normalize(
    tensors: Tensors,
    *,
    mean: Annotated[list[float], Field(min_length=1)],
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)],
    axis: ChannelAxis = -1,
    tensor: str = "",
) -> Tensors:
    """(x − mean) / std along `axis`, in float32; one value of each, or one per channel.

    Raises:
        ValueError: there are neither one nor as many values as channels, or `axis` is no channel's.
    """

    def along(values: list[float], array: Array) -> Array:
        if len(values) == 1:
            return np.asarray(values, dtype=np.float32)
        # a batch of one has an axis 0 of one too, which must not be taken for the channels
        if not -array.ndim < axis < array.ndim:
            raise ValueError(f"there is no channel axis {axis} in the shape {list(array.shape)}")
        if len(values) != array.shape[axis]:
            raise ValueError(
                f"{len(values)} values for {array.shape[axis]} channels along axis {axis}"
            )
        shape = [1] * array.ndim
        shape[axis] = -1
        return np.asarray(values, dtype=np.float32).reshape(shape)

    def apply(array: Array) -> Array:
        return (array.astype(np.float32) - along(mean, array)) / along(std, array)

    return replaced(tensors, tensor, apply)


@processor("cast")
def cast(tensors: Tensors, *, datatype: Datatype, tensor: str = "") -> Tensors:
    """Convert the element type of numbers; what does not fit is refused, never wrapped or cut off.

    To integers, fractions are dropped (towards zero), and the rest must lie in the type's range:
    NaN and infinity never do.  To floating point, values are rounded to the nearest; NaN and
    infinity stay, but no finite value becomes infinite.  BOOL is true where a value is not zero.

    Raises:
        Rejected: a value does not fit ("cast_out_of_range").
        ValueError: text has no numbers to convert.
    """
    dtype = numpy_dtype(datatype)

    def apply(array: Array) -> Array:
        if "O" in (array.dtype.kind, dtype.kind) or array.dtype.kind in "SU":
            raise ValueError(f"{array.dtype} does not become {datatype}: only numbers are cast")
        if dtype.kind in "iu" and not _in_range(array, dtype):
            raise Rejected("cast_out_of_range", f"a value does not fit {datatype}")
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        if dtype.kind == "f" and (np.isinf(result) & np.isfinite(array)).any():
            raise Rejected("cast_out_of_range", f"a value does not fit {datatype}")
        return result

    return replaced(tensors, tensor, apply)


def _in_range(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether every value, without its fraction, is one of the integers of `dtype`."""
    if not array.size or np.can_cast(array.dtype, dtype):
        return True
    limits = np.iinfo(dtype)
    if array.dtype.kind != "f":
        return int(array.min()) >= limits.min and int(array.max()) <= limits.max
    # both bounds are powers of two, or 0, which float32 holds exactly and float16 does not
    whole = np.trunc(array.astype(np.float32) if array.dtype.itemsize < 4 else array)
    low, high = float(limits.min), float(limits.max + 1)
    return bool(((whole >= low) & (whole < high)).all())  # NaN is neither


@processor("reshape")
def reshape(tensors: Tensors, *, shape: list[int], tensor: str = "") -> Tensors:
    """Give each item the shape `shape`; the batch axis stays in front."""
    return replaced(tensors, tensor, lambda array: array.reshape(array.shape[0], *shape))


@processor("rename")
def rename(tensors: Tensors, *, names: dict[str, str]) -> Tensors:
    """Give tensors other names; those not listed keep theirs."""
    return {names.get(name, name): array for name, array in tensors.items()}
