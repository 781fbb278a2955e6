"""The Session port: one opened network, whatever runs it.

Rules for implementers:
    * `run` may be called from several threads at once.  `instances` of them proceed; the others
      wait their turn.  All share one copy of the weights.
    * A tensor's array has `numpy_dtype` of its datatype: FP16 is float16, BYTES an object array of
      `bytes`, and BF16, which numpy lacks, is float32.  The session converts where its runtime
      wants something else.  No other type is cast: an array of the wrong type fails the run.
    * `run` takes what the network names out of the mapping and ignores the rest, so that a pipeline
      can carry tensors past the network.
    * `provenance` states what really runs: the actual precision, not the wished one.
    * After `close`, memory is returned as soon as the last run has ended; `run` raises `RunFailed`.
      `runtime.memory.give_back` makes the C library return it to the system too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A numpy array of any element type; its `TensorSpec` says which."""

Tensors: TypeAlias = dict[str, Array]
"""Named tensors, each with a leading batch axis, row-major."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What ran, so that a figure can be traced to its cause.

    Attributes:
        device: "CPU", or the accelerator's name.
        precision: the actual precision, e.g. "fp32", "int8", "bf16".
        threads: intra-op threads; 0 means the runtime's own choice.
        cpu_flags: instruction sets that matter for inference; see `runtime.cpu`.
    """

    runtime: str
    version: str
    device: str
    precision: str
    threads: int
    cpu_flags: tuple[str, ...] = ()


class Session(Protocol):
    """One opened network.  See the module for the rules."""

    @property
    def provenance(self) -> Provenance: ...

    @property
    def instances(self) -> int:
        """How many runs really proceed at the same time; the spec's number or less.

        More callers than this queue up inside `run` or slow each other down.
        """
        ...

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        """Answer one batch.

        Args:
            tensors: at least the network's inputs, by name, of the dtypes and shapes it declares.

        Returns:
            The network's outputs by name, in its order.

        Raises:
            RunFailed: an input is missing or unfit, or the runtime failed.
        """
        ...

    def close(self) -> None:
        """Release the network.  Idempotent."""
        ...


def contiguous(array: Array) -> Array:
    """`array` in row-major layout, copied only when it is not."""
    return np.ascontiguousarray(array)
