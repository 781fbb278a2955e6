"""Built-in steps.  Each works on one named tensor, or on all where no name is given.

checkers    check.finite, check.range
processors  scale, normalize, cast, reshape, rename
services    classify
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from edge_agent.pipeline.errors import Rejected
from edge_agent.pipeline.steps import checker, processor, service
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Datatype


@checker("check.finite")
def check_finite(tensors: Tensors, *, tensor: str = "") -> None:
    """Refuse NaN and infinity in floating-point tensors."""
    for name in _names(tensors, tensor):
        array = tensors[name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Rejected("not_finite", f"{name!r} holds NaN or infinity")


@checker("check.range")
def check_range(tensors: Tensors, *, min: float, max: float, tensor: str = "") -> None:
    """Refuse values outside of [min, max]; NaN lies outside."""
    for name in _names(tensors, tensor):
        array = tensors[name]
        if array.dtype.kind in "OSU" or array.size == 0:
            continue
        if not (array.min() >= min and array.max() <= max):
            raise Rejected("out_of_range", f"{name!r} leaves [{min:g}, {max:g}]")


@processor("scale")
def scale(tensors: Tensors, *, factor: float, tensor: str = "") -> Tensors:
    """Multiply by `factor`, in float32."""
    return _map(tensors, tensor, lambda array: array.astype(np.float32) * np.float32(factor))


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

    return _map(tensors, tensor, apply)


@processor("cast")
def cast(tensors: Tensors, *, datatype: Datatype, tensor: str = "") -> Tensors:
    """Convert the element type."""
    dtype = numpy_dtype(datatype)
    return _map(tensors, tensor, lambda array: array.astype(dtype))


@processor("reshape")
def reshape(tensors: Tensors, *, shape: list[int], tensor: str = "") -> Tensors:
    """Give each item the shape `shape`; the batch axis stays in front."""
    return _map(tensors, tensor, lambda array: array.reshape(array.shape[0], *shape))


@processor("rename")
def rename(tensors: Tensors, *, names: dict[str, str]) -> Tensors:
    """Give tensors other names; those not listed keep theirs."""
    return {names.get(name, name): array for name, array in tensors.items()}


@service("classify")
def classify(tensors: Tensors, *, logits: str = "", temperature: float = 1.0) -> Tensors:
    """Class scores and labels from logits [n, classes].

    Args:
        logits: name of the logits; empty takes the network's only output.
        temperature: divides the logits before the softmax.

    Returns:
        `scores` FP32 [n, classes], each row summing to 1, and `label` INT64 [n], the largest.
    """
    if logits:
        values = tensors[logits]
    elif len(tensors) == 1:
        values = next(iter(tensors.values()))
    else:
        raise ValueError(f"several outputs ({', '.join(tensors)}); name one as 'logits'")
    scaled = values.astype(np.float32) / np.float32(temperature)
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    scores = exponent / exponent.sum(axis=1, keepdims=True)
    return {"scores": scores, "label": scores.argmax(axis=1).astype(np.int64)}


def _names(tensors: Tensors, tensor: str) -> list[str]:
    if not tensor:
        return list(tensors)
    if tensor not in tensors:
        raise KeyError(f"no tensor {tensor!r}; there are {', '.join(tensors)}")
    return [tensor]


def _map(tensors: Tensors, tensor: str, function: Callable[[Array], Array]) -> Tensors:
    chosen = _names(tensors, tensor)
    return {name: function(array) if name in chosen else array for name, array in tensors.items()}
