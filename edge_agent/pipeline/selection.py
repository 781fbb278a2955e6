"""Which tensors a built-in step works on: one by its name, or all where none is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal

from edge_agent.runtime.session import Array, Tensors

Layout = Literal["HWC", "CHW"]
"""Where an image of three axes has its channels; one of two axes is grey: height, width."""

_TEXT_KINDS: Final = "OSU"


def names(tensors: Tensors, tensor: str) -> list[str]:
    """`tensor` alone, or every name where it is empty.

    Raises:
        KeyError: there is no such tensor.
    """
    if not tensor:
        return list(tensors)
    if tensor not in tensors:
        raise KeyError(f"no tensor {tensor!r}; there are {', '.join(tensors)}")
    return [tensor]


def numeric(tensors: Tensors, tensor: str) -> Iterator[tuple[str, Array]]:
    """Those of `names` that hold numbers and are not empty."""
    for name in names(tensors, tensor):
        array = tensors[name]
        if array.dtype.kind not in _TEXT_KINDS and array.size:
            yield name, array


def replaced(tensors: Tensors, tensor: str, function: Callable[[Array], Array]) -> Tensors:
    """`tensors` with `function` of those that are chosen; the rest are carried."""
    chosen = names(tensors, tensor)
    return {name: function(array) if name in chosen else array for name, array in tensors.items()}


def only(tensors: Tensors, tensor: str, key: str) -> str:
    """The name of the tensor that a service works on.

    Args:
        tensor: its name; empty takes the only one.
        key: the config key that names it, for the error.

    Raises:
        KeyError: there is no such tensor.
        ValueError: there are several, and none is named.
    """
    if not tensor and len(tensors) != 1:
        raise ValueError(f"several outputs ({', '.join(tensors)}); name one as {key!r}")
    return names(tensors, tensor)[0]


def image_axes(array: Array, layout: Layout) -> tuple[int, int]:
    """The axes of height and width in a batch of images.

    Raises:
        ValueError: it is no batch of images.
    """
    if array.ndim == 3 or (array.ndim == 4 and layout == "HWC"):
        return 1, 2
    if array.ndim == 4:
        return 2, 3
    raise ValueError(f"a batch of images has 3 or 4 axes, not the shape {list(array.shape)}")
