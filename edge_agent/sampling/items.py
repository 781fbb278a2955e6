"""The items of a prediction, the ring of recent ones, and the form of a sample on the wire.

A request with a batch of n is n items with ids `ID.0` … `ID.n-1`; one with a single item keeps the
id of the prediction.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard

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

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())


def batch_size(inputs: Tensors) -> int:
    """Length of the leading axis that all inputs share; 0 when they share none."""
    sizes = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def item_id(prediction_id: str, index: int, count: int) -> str:
    """Id of the item `index` of `count`."""
    return prediction_id if count == 1 else f"{prediction_id}.{index}"


def scores_of(outputs: Tensors, index: int) -> Array | None:
    """Class scores of one item: the output named "scores", [n, classes]."""
    scores = outputs.get("scores")
    if scores is None or scores.ndim != 2 or index >= scores.shape[0]:
        return None
    row: Array = scores[index]
    return row


def predicted_of(manifest: Manifest, outputs: Tensors, index: int) -> str:
    """Name of the answered class: by the output "label", else by the best score; "" if neither."""
    label = outputs.get("label")
    if (
        label is not None
        and label.ndim == 1
        and index < label.shape[0]
        and label.dtype.kind in "iu"
    ):
        number = int(label[index])
    else:
        scores = scores_of(outputs, index)
        if scores is None:
            return ""
        number = int(np.argmax(scores))
    if 0 <= number < len(manifest.labels):
        return manifest.labels[number]
    return str(number)


class Ring:
    """The most recent items by id, bounded in bytes and count.  Not thread-safe."""

    OVERHEAD_BYTES: Final = 600
    """What an entry costs beside its arrays, roughly."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[tuple[str, str], Item] = OrderedDict()
        self._bytes = 0

    def add(self, item: Item) -> None:
        key = (item.manifest.model, item.prediction_id)
        old = self._items.pop(key, None)
        if old is not None:
            self._bytes -= old.nbytes + self.OVERHEAD_BYTES
        self._items[key] = item
        self._bytes += item.nbytes + self.OVERHEAD_BYTES
        while self._bytes > self._max_bytes and self._items:
            _, dropped = self._items.popitem(last=False)
            self._bytes -= dropped.nbytes + self.OVERHEAD_BYTES

    def get(self, model: str, prediction_id: str) -> Item | None:
        return self._items.get((model, prediction_id))

    def __len__(self) -> int:
        return len(self._items)


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
