"""The items of a prediction, the ring of recent ones, and the form of a sample on the wire.

A request with a batch of n is n items with ids `ID.0` … `ID.n-1`; one with a single item keeps the
id of the prediction.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import zstandard

from edge_agent.pipeline.classes import predicted_of, scores_of
from edge_agent.runtime import Array, Tensors, datatype_of
from edge_agent.wire.base import pack_frame
from edge_agent.wire.manifest import Manifest, TensorSpec
from edge_agent.wire.samples import MAX_SAMPLE_BYTES, SampleHeader

MAX_ID: Final = 64
ZSTD_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Item:
    """One item of one prediction, with arrays of its own.

    Attributes:
        tensors: the pipeline's inputs, each with a leading axis of one; empty if not kept.
        scores: [classes], or None where the model has none.
    """

    prediction_id: str
    manifest: Manifest
    tensors: Tensors
    predicted: str
    scores: Array | None
    at: float


class Observed(Protocol):
    """What sampling reads of `edge_agent.serve.Prediction`.

    `items` is the length of the leading axis of all inputs, which the server has checked.
    """

    @property
    def prediction_id(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def inputs(self) -> Tensors: ...
    @property
    def outputs(self) -> Tensors: ...
    @property
    def items(self) -> int: ...


def item_of(prediction: Observed, index: int, count: int, at: float) -> Item:
    """The item `index` of `count`, copied out of a prediction.

    Args:
        at: when it was answered, seconds since the epoch.
    """
    scores = scores_of(prediction.outputs, index)
    return Item(
        prediction_id=item_id(prediction.prediction_id, index, count),
        manifest=prediction.manifest,
        tensors={
            name: array[index : index + 1].copy() for name, array in prediction.inputs.items()
        },
        predicted=predicted_of(prediction.manifest, prediction.outputs, index),
        scores=None if scores is None else scores.copy(),
        at=at,
    )


def item_bytes(prediction: Observed, index: int) -> int:
    """Bytes that the tensors of the item `index` take."""
    size = 0
    for name, array in prediction.inputs.items():
        if array.dtype.hasobject:
            size += content_bytes({name: array[index : index + 1]})
        else:
            size += array.nbytes // prediction.items
    return size


def item_id(prediction_id: str, index: int, count: int) -> str:
    """Id of the item `index` of `count`."""
    return prediction_id if count == 1 else f"{prediction_id}.{index}"


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is remembered of a prediction whose arrays are too large or keep too much."""

    prediction_id: str
    manifest: Manifest
    inputs: Tensors
    outputs: Tensors
    items: int

    def copy(self) -> _Kept:
        inputs = {name: array.copy() for name, array in self.inputs.items()}
        outputs = {name: array.copy() for name, array in self.outputs.items()}
        return _Kept(self.prediction_id, self.manifest, inputs, outputs, self.items)


class _Recent(NamedTuple):
    """The predictions of a batch, as they were answered."""

    predictions: Sequence[Observed]
    at: float
    cost_bytes: int


class Ring:
    """The most recent predictions, bounded in bytes.  Not thread-safe.

    Adding is for every request and does next to nothing; finding one is for the rare correction and
    looks through them.  It holds on to the arrays that were answered with, which nobody writes to.
    """

    OVERHEAD_BYTES: Final = 1200
    """What a prediction costs beside its arrays, roughly."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._large = max_bytes // 16
        self._manifest: object = self  # no manifest yet
        self._objects = True
        self._recent: deque[_Recent] = deque()
        self._bytes = 0

    def add(self, predictions: Sequence[Observed], at: float) -> None:
        """Remember predictions; of a very large one not the inputs.

        What counts is the memory that the arrays keep from being freed: that of the whole batch
        for its rows, of the whole message for its tensors.  Where that is much more than the
        arrays themselves, they are copied.

        Args:
            at: when they were answered, seconds since the epoch.
        """
        overhead = self.OVERHEAD_BYTES * len(predictions)
        held = self._held_plainly(predictions, overhead)
        if held is None:
            predictions, held = self._compacted(predictions, overhead)
        cost_bytes = held + overhead
        if cost_bytes > self._max_bytes:
            return
        self._recent.append(_Recent(predictions, at, cost_bytes))
        self._bytes += cost_bytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._recent.popleft().cost_bytes

    def get(self, model: str, name: str) -> Item | None:
        """The item with this id, if it is still remembered; of several the latest."""
        prediction_id, _, number = name.rpartition(".")
        for recent in reversed(self._recent):
            for prediction in recent.predictions:
                found = prediction.prediction_id
                if found not in (name, prediction_id) or prediction.manifest.model != model:
                    continue
                count = prediction.items
                index = int(number[:9]) if found != name and _is_number(number) else 0
                if index < count and item_id(found, index, count) == name:
                    return item_of(prediction, index, count, recent.at)
                return None  # which item of the batch is meant?
        return None

    def _held_plainly(self, predictions: Sequence[Observed], overhead: int) -> int | None:
        """Bytes that are held on to; None where objects count, or too much would be held."""
        first = predictions[0]
        if first.manifest is not self._manifest:
            arrays = (*first.inputs.values(), *first.outputs.values())
            self._manifest = first.manifest  # whose tensors have the same types in all predictions
            self._objects = any(array.dtype.hasobject for array in arrays)
        if self._objects:
            return None
        wanted = held = 0
        owners: set[int] = set()
        for prediction in predictions:
            size = 0
            for array in prediction.inputs.values():
                nbytes = array.nbytes
                size += nbytes
                base = array.base
                if base is None:
                    held += nbytes
                elif id(base) not in owners:
                    owners.add(id(base))
                    # mostly a view of an array over the bytes of the message
                    owner: object = base.base if isinstance(base, np.ndarray) else base
                    if isinstance(owner, bytes):
                        if id(owner) not in owners:
                            owners.add(id(owner))
                            held += len(owner)
                    else:
                        held += _owner_bytes(base, owners)
            if size > self._large:
                return None
            wanted += size
            for array in prediction.outputs.values():
                nbytes = array.nbytes
                wanted += nbytes
                base = array.base
                if base is None:
                    held += nbytes
                elif id(base) not in owners:
                    owners.add(id(base))
                    held += _owner_bytes(base, owners)
        return held if held <= 2 * wanted + overhead else None

    def _compacted(
        self, predictions: Sequence[Observed], overhead: int
    ) -> tuple[Sequence[Observed], int]:
        """The predictions without large inputs, copied where they hold too much; and bytes held."""
        kept: list[_Kept] = []
        wanted = held = 0
        owners: set[int] = set()
        for each in predictions:
            inputs: Tensors = each.inputs
            size = content_bytes(inputs)
            if size > self._large:
                inputs, size = {}, 0
            wanted += size + content_bytes(each.outputs)
            for array in (*inputs.values(), *each.outputs.values()):
                held += _owner_bytes(array, owners)
            kept.append(_Kept(each.prediction_id, each.manifest, inputs, each.outputs, each.items))
        if held <= 2 * wanted + overhead:
            return kept, held
        if wanted > self._max_bytes:
            return [], held  # too much to copy, and to remember
        return [each.copy() for each in kept], wanted


def content_bytes(tensors: Tensors) -> int:
    """Bytes of the arrays, and of the objects in them."""
    size = 0
    for array in tensors.values():
        size += array.nbytes
        if array.dtype.hasobject:
            size += sum(map(sys.getsizeof, array.ravel()))
    return size


def _owner_bytes(held: object, owners: set[int]) -> int:
    """Bytes of what a view belongs to in the end; 0 if that is among `owners` already.

    Args:
        owners: ids of what holds memory; added to.
    """
    while True:
        base: object = None
        if isinstance(held, np.ndarray):
            base = held.base
        elif isinstance(held, memoryview):
            base = held.obj
        if not isinstance(base, (np.ndarray, memoryview, bytes, bytearray)):
            break  # its own, or a runtime's: the last array over that tells its size
        if id(base) in owners:
            return 0
        owners.add(id(base))
        held = base
    if isinstance(held, np.ndarray):
        return content_bytes({"": held})
    return held.nbytes if isinstance(held, memoryview) else sys.getsizeof(held)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class NotSampleable(ValueError):
    """The item cannot be put into a sample: an element type without a fixed size, or too large."""


def tensor_specs(tensors: Tensors) -> tuple[TensorSpec, ...]:
    """Names, types and shapes, in the order of the mapping.

    Raises:
        NotSampleable: an element type has no fixed size.
    """
    specs = []
    for name, array in tensors.items():
        try:
            datatype = datatype_of(array.dtype)
        except ValueError as error:
            raise NotSampleable(f"tensor {name!r}: {error}") from error
        if datatype == "BYTES":
            raise NotSampleable(f"tensor {name!r}: byte strings are not sampled")
        specs.append(TensorSpec(name=name, datatype=datatype, shape=array.shape))
    return tuple(specs)


def encode_sample(header: SampleHeader, tensors: Tensors) -> bytes:
    """The payload of a sample message: see `edge_agent.wire.samples`.

    Raises:
        NotSampleable: longer than a sample may be.
    """
    raw = b"".join(_little_endian(array) for array in tensors.values())
    body = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(raw)
    frame = pack_frame(header, body)
    if len(frame) > MAX_SAMPLE_BYTES:
        raise NotSampleable(f"a sample of {len(frame)} bytes exceeds {MAX_SAMPLE_BYTES}")
    return frame


def _little_endian(array: Array) -> bytes:
    if sys.byteorder == "big" and array.dtype.itemsize > 1:
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).tobytes()
