"""Built-in processors: scale, normalize, cast, reshape, rename.  Those of images: `image_steps`."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from edge_agent.pipeline.selection import replaced
from edge_agent.pipeline.steps import processor
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Datatype


@processor("scale")
def scale(tensors: Tensors, *, factor: float, tensor: str = "") -> Tensors:
    """Multiply by `factor`, in float32."""
    return replaced(tensors, tensor, lambda array: array.astype(np.float32) * np.float32(factor))


@processor("normalize")
def normalize(
    tensors: Tensors,
    *,
    mean: list[float],
    std: list[Annotated[float, Field(gt=0)]],
    axis: int = -1,
    tensor: str = "",
) -> Tensors:
    """(x − mean) / std along `axis`, in float32; one value of each, or one per channel."""

    def apply(array: Array) -> Array:
        shape = [1] * array.ndim
        shape[axis] = -1
        centre = np.asarray(mean, dtype=np.float32).reshape(shape)
        spread = np.asarray(std, dtype=np.float32).reshape(shape)
        return (array.astype(np.float32) - centre) / spread

    return replaced(tensors, tensor, apply)


@processor("cast")
def cast(tensors: Tensors, *, datatype: Datatype, tensor: str = "") -> Tensors:
    """Convert the element type."""
    dtype = numpy_dtype(datatype)
    return replaced(tensors, tensor, lambda array: array.astype(dtype))


@processor("reshape")
def reshape(tensors: Tensors, *, shape: list[int], tensor: str = "") -> Tensors:
    """Give each item the shape `shape`; the batch axis stays in front."""
    return replaced(tensors, tensor, lambda array: array.reshape(array.shape[0], *shape))


@processor("rename")
def rename(tensors: Tensors, *, names: dict[str, str]) -> Tensors:
    """Give tensors other names; those not listed keep theirs."""
    return {names.get(name, name): array for name, array in tensors.items()}
