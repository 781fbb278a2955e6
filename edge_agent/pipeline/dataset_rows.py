"""Rows on their way into a batch: what a source of them is, and how they are brought together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from edge_agent.pipeline.errors import DatasetError, TaskError
from edge_agent.pipeline.interface import Request
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import TensorSpec

MAX_BATCH_BYTES: Final = 64 << 20

ID: Final = "id"
"""The array, column or key that names the rows."""

MAX_ID_LENGTH: Final = 500

_CONVERTIBLE: Final = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "O": "OSU"}
"""For each kind of dtype those whose values may become it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows.

    Attributes:
        ids: of each row.
        tensors: the inputs, each [len(ids), …].
    """

    ids: tuple[str, ...]
    tensors: Tensors

    def __len__(self) -> int:
        return len(self.ids)

    def apart(self) -> Iterator[Batch]:
        """Each row as a batch of its own."""
        for row, name in enumerate(self.ids):
            yield Batch((name,), {key: array[row : row + 1] for key, array in self.tensors.items()})

    def request(self, *, debug: bool = False) -> Request:
        """The rows as one request, named by the first of them."""
        return Request(self.tensors, self.ids[0], debug=debug)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out, and why, in one line."""

    id: str
    reason: str


OnBad = Callable[[BadRow], None]


class Source(Protocol):
    """Where rows come from.  May be read several times."""

    @property
    def rows(self) -> int | None:
        """How many rows there are, bad ones too; None where counting means reading."""
        ...

    def chunks(self, size: int, on_bad: OnBad) -> Iterator[Batch]:
        """Up to `size` rows each, not yet checked; rows that make no tensors go to `on_bad`.

        Raises:
            DatasetError: the files turn out to be damaged.
        """
        ...


def fitted(array: Array, spec: TensorSpec) -> Array:
    """`array` in the datatype of `spec`, if its values fit.

    Raises:
        TaskError: they are of another kind, or too large.
    """
    dtype = numpy_dtype(spec.datatype)
    if array.dtype == dtype and dtype.kind != "O":
        return array
    if not convertible(array.dtype, spec):
        raise TaskError(f"input {spec.name!r} is {array.dtype}, expected {spec.datatype}")
    if dtype.kind == "O":
        return _as_bytes(array, spec.name)
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise TaskError(f"input {spec.name!r} has a number that {spec.datatype} cannot hold")
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        raise TaskError(
            f"input {spec.name!r} has a number that {spec.datatype} cannot hold"
        ) from None


def convertible(dtype: np.dtype[Any], spec: TensorSpec) -> bool:
    """Whether values of `dtype` may become the datatype of `spec`, as far as they fit."""
    return dtype.kind in _CONVERTIBLE[numpy_dtype(spec.datatype).kind]


def grouped(
    items: Iterable[tuple[str, Tensors]], size: int, *, max_bytes: int = MAX_BATCH_BYTES
) -> Iterator[Batch]:
    """Neighbouring single rows together, as long as their shapes agree and their bytes allow."""
    waiting: list[Batch] = []
    form: object = None
    held_bytes = 0
    for name, tensors in items:
        own = [(key, array.shape, array.dtype) for key, array in tensors.items()]
        own_bytes = sum(array.nbytes for array in tensors.values())
        full = len(waiting) >= size or held_bytes + own_bytes > max_bytes
        if waiting and (full or own != form):
            yield joined(waiting)
            waiting, held_bytes = [], 0
        waiting.append(Batch((name,), tensors))
        form, held_bytes = own, held_bytes + own_bytes
    if waiting:
        yield joined(waiting)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several that have the same shapes."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        tuple(name for batch in batches for name in batch.ids),
        {
            key: np.concatenate([batch.tensors[key] for batch in batches])
            for key in batches[0].tensors
        },
    )


def numbered(start: int, stop: int) -> tuple[str, ...]:
    """Ids of rows that have none of their own."""
    return tuple(map(str, range(start, stop)))


def named(values: Iterable[object], start: int) -> tuple[str, ...]:
    """Ids that the rows bring along; one that is null is named by its number."""
    return tuple(
        str(number) if value is None else id_of(value) for number, value in enumerate(values, start)
    )


def id_of(value: object) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return printable(text)[:MAX_ID_LENGTH]


def printable(text: str) -> str:
    """`text` with escapes for what no encoding has: lone surrogates, as in odd file names."""
    return text.encode("utf-8", "backslashreplace").decode()


def require_inputs(names: Iterable[str], inputs: Sequence[TensorSpec], where: str) -> None:
    """Refuse a source in which an input is missing.

    Raises:
        DatasetError: it is.
    """
    have = list(names)
    for spec in inputs:
        if spec.name not in have:
            known = ", ".join(map(repr, have[:10])) or "nothing"
            raise DatasetError(f"{where}: input {spec.name!r} is missing; there is {known}")


def same_length(lengths: Mapping[str, int], where: str) -> int:
    """The number of rows that all arrays have.

    Raises:
        DatasetError: they differ.
    """
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DatasetError(f"{where}: arrays of different lengths: {told}")
    return next(iter(lengths.values()), 0)


def _as_bytes(array: Array, name: str) -> Array:
    flat = np.empty(array.size, dtype=object)
    for index, value in enumerate(array.ravel()):
        if isinstance(value, str):
            try:
                flat[index] = value.encode()
            except UnicodeEncodeError:
                raise TaskError(f"input {name!r} holds text that is no Unicode") from None
        elif isinstance(value, bytes):
            flat[index] = bytes(value)
        else:
            raise TaskError(f"input {name!r} holds {type(value).__name__}, expected BYTES")
    return flat.reshape(array.shape)
