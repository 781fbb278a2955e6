"""The items of a prediction, the ring of recent ones, and the form of a sample on the wire.

A request with a batch of n is n items with ids `ID.0` … `ID.n-1`; one with a single item keeps the
id of the prediction.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

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


@dataclass(frozen=True, slots=True)
class _WithoutInputs:
    """A prediction whose inputs are too large to be remembered."""

    prediction_id: str
    manifest: Manifest
    outputs: Tensors
    items: int
    inputs: Tensors = field(default_factory=dict)


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
        self._recent: deque[_Recent] = deque()
        self._bytes = 0

    def add(self, predictions: Sequence[Observed], at: float) -> None:
        """Remember predictions; of a very large one not the inputs.

        Args:
            at: when they were answered, seconds since the epoch.
        """
        cost_bytes = 0
        large = False
        for prediction in predictions:
            size = 0
            for array in prediction.inputs.values():
                size += array.nbytes
            if size > self._max_bytes // 16:
                large, size = True, 0
            for array in prediction.outputs.values():
                size += array.nbytes
            cost_bytes += size + self.OVERHEAD_BYTES
        if large:
            predictions = [self._bounded(prediction) for prediction in predictions]
        self._recent.append(_Recent(predictions, at, cost_bytes))
        self._bytes += cost_bytes
        while self._bytes > self._max_bytes and self._recent:
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

    def _bounded(self, prediction: Observed) -> Observed:
        if sum(array.nbytes for array in prediction.inputs.values()) <= self._max_bytes // 16:
            return prediction
        return _WithoutInputs(
            prediction.prediction_id, prediction.manifest, prediction.outputs, prediction.items
        )


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
