"""What an ONNX file tells without the onnx package, which devices do without.

Names of operators and of files with weights stand in it as plain text.  What type most weights have
takes a look at its fields, which this module walks through without loading any.

Source: onnx.proto (field numbers), protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_QUANTISED_OPS: Final = (b"QLinear", b"DequantizeLinear", b"MatMulInteger", b"ConvInteger")
"""Operators (or their prefixes) that only a network with integer arithmetic holds."""


def has_integer_arithmetic(path: Path) -> bool:
    """Whether the network in `path` is quantised."""
    return bool(_mentioned(path, _QUANTISED_OPS))


_BLOCKWISE: Final = b"MatMulNBits"
_GRAPH, _NODE, _INITIALIZER, _DATA_TYPE, _OPERATOR, _ATTRIBUTE = 7, 1, 5, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_FLOATS: Final = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}
"""`TensorProto.DataType` of real numbers."""

Field = tuple[int, int | memoryview]
"""Number and value of one field; what is neither a varint nor bytes has the value 0."""


def blockwise_bits(path: Path) -> int:
    """Bits of the weights that stand in blocks with a scale each; 0 where there are none."""
    if not _mentioned(path, [_BLOCKWISE]):
        return 0
    bits = 0
    for node in _in_graph(path, _NODE):
        fields = list(_fields(node))
        if not any(n == _OPERATOR and _is(value, _BLOCKWISE) for n, value in fields):
            continue
        for number, value in fields:
            if number == _ATTRIBUTE and isinstance(value, memoryview):
                attribute = dict(_fields(value))
                if _is(attribute.get(_ATTRIBUTE_NAME, 0), b"bits"):
                    stored = attribute.get(_ATTRIBUTE_INT, 0)
                    bits = max(bits, stored if isinstance(stored, int) else 0)
    return bits or 4  # what the operator takes where the attribute is left out


def weights_precision(path: Path) -> str:
    """The type in which most bytes of the real-valued weights are stored; "" without any."""
    sizes: Counter[str] = Counter()
    for tensor in _in_graph(path, _INITIALIZER):
        kind = next((value for number, value in _fields(tensor) if number == _DATA_TYPE), 0)
        if isinstance(kind, int) and kind in _FLOATS:
            sizes[_FLOATS[kind]] += len(tensor)
    return max(sizes, key=lambda name: sizes[name]) if sizes else ""


def _is(value: int | memoryview, word: bytes) -> bool:
    return isinstance(value, memoryview) and value == word


def _in_graph(path: Path, wanted: int) -> Iterator[memoryview]:
    """The graph's parts of one kind; none where the file is damaged."""
    try:
        with path.open("rb") as file:  # pages that are skipped are never read
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for number, graph in _fields(memoryview(view)):
            if number == _GRAPH and isinstance(graph, memoryview):
                for inner, value in _fields(graph):
                    if inner == wanted and isinstance(value, memoryview):
                        yield value
    except (IndexError, ValueError):
        return


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of one protobuf message.

    Raises:
        IndexError: it ends within a field.
        ValueError: it has a field of a type that there is none of.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise IndexError("cut short")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield number, 0
        else:
            raise ValueError(f"no field has type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def network_digest(path: Path) -> str:
    """SHA-256 of the network: `path` and the files beside it that it names (external weights)."""
    beside = sorted(item for item in path.parent.iterdir() if item.is_file() and item != path)
    named = _mentioned(path, [item.name.encode() for item in beside])
    digest = hashlib.sha256()
    for item in (path, *(item for item in beside if item.name.encode() in named)):
        with item.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _mentioned(path: Path, words: Iterable[bytes]) -> set[bytes]:
    with path.open("rb") as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return set()
        with view:
            return {word for word in words if view.find(word) >= 0}
