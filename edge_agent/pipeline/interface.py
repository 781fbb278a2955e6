"""The interface of a pipeline: what a request must look like.

One function checks it for everybody: the device that serves and the cloud that evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from pydantic import JsonValue

from edge_agent.pipeline.errors import InputError, nearest
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import TensorSpec

Steps: TypeAlias = list[tuple[str, Tensors]]
"""After each step its name and the tensors then; a checker changes none and has an empty dict."""


@dataclass(slots=True)
class Request:
    """One request as any transport hands it over, and in debug mode what became of it.

    Attributes:
        id: the client's id, or empty; names the prediction in feedback.
        parameters: what the client sent beside the tensors.
        debug: whether `Pipeline.process` keeps every step's output.
        steps: filled by `Pipeline.process` in debug mode.  After a failure it holds the steps
            that went well, so its length tells which one did not.
    """

    tensors: Tensors
    id: str = ""
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    debug: bool = False
    steps: Steps = field(default_factory=list)


class Interface:
    """The inputs of one pipeline, prepared for a check per request.

    `validate` says the same of the same tensors as the function, in half the time.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        """Prepare `specs`.

        Raises:
            InputError: no array has such a datatype.
        """
        self.specs = tuple(specs)
        self._expected = tuple(
            (spec.name, spec_dtype(spec), spec.shape[:1], spec.shape[1:]) for spec in specs
        )

    def validate(self, tensors: Mapping[str, Array]) -> int:
        """As the function `validate`."""
        batch = 0
        for name, dtype, first, rest in self._expected:
            array = tensors.get(name)
            # a subclass may have another idea of a shape, so the function tells about it;
            # numpy hands out its own dtype objects, so that identity mostly settles it
            if type(array) is not np.ndarray or (array.dtype is not dtype and array.dtype != dtype):
                return validate(tensors, self.specs)
            shape = array.shape
            if shape[1:] != rest or first != (-1,) or not shape or shape[0] < 1:
                return validate(tensors, self.specs)  # open axes, or something to tell about
            if shape[0] != batch:
                if batch:
                    return validate(tensors, self.specs)
                batch = shape[0]
        if len(tensors) != len(self._expected):
            return validate(tensors, self.specs)
        return batch


def spec_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """As `numpy_dtype`, with the tensor's name in the error.

    Raises:
        InputError: no array has such a datatype.
    """
    try:
        return numpy_dtype(spec.datatype)
    except ValueError as error:
        raise InputError(f"tensor {spec.name!r}: {error}") from error


def validate(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> int:
    """Check that `tensors` are exactly what `specs` describe.

    Returns:
        The batch size, which all tensors share.

    Raises:
        InputError: a tensor is missing, unknown, no array, or has another dtype or shape.
    """
    batch = -1
    for spec in specs:
        array = tensors.get(spec.name)
        if array is None:
            raise InputError(f"input {spec.name!r} is missing")
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {spec.name!r} is {type(array).__name__}, no array")
        if array.dtype != numpy_dtype(spec.datatype):
            raise InputError(f"input {spec.name!r} is {array.dtype}, expected {spec.datatype}")
        shape = array.shape
        if len(shape) != len(spec.shape) or any(
            wanted not in (-1, actual) for wanted, actual in zip(spec.shape, shape, strict=True)
        ):
            raise InputError(
                f"input {spec.name!r} has shape {list(shape)}, expected {list(spec.shape)}"
            )
        if not shape or shape[0] < 1:
            raise InputError(f"input {spec.name!r} holds no items")
        if batch >= 0 and shape[0] != batch:
            raise InputError(f"input {spec.name!r} holds {shape[0]} items, others {batch}")
        batch = shape[0]
    if len(tensors) != len(specs):
        known = [spec.name for spec in specs]
        unknown = next(name for name in tensors if name not in known)
        raise InputError(f"unknown input {unknown!r}{nearest(unknown, known)}")
    return batch
