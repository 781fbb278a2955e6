"""Where the weights lie in the bytes of a network's file.

ONNX is protobuf, and its tensors keep their values in one field, so walking the fields finds every
tensor's place without decoding any.  OpenVINO's `.xml` names offset and size of each constant in
the `.bin` beside it.  What cannot be read as either has no tensors, which makes a delta larger and
never wrong.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH: Final = 16

# field numbers of onnx.proto
_MODEL_GRAPH: Final = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_NAME, _NODE_ATTRIBUTE = 3, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9
_TENSOR_DOUBLES: Final = 10

# onnx.TensorProto.DataType → bytes of an element, for those whose elements are whole bytes
_ONNX_WIDTHS: Final = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 17: 1,
    18: 1, 19: 1, 20: 1,
}  # fmt: skip
_OPENVINO_WIDTHS: Final = {
    "f64": 8, "i64": 8, "u64": 8, "f32": 4, "i32": 4, "u32": 4, "f16": 2, "bf16": 2, "i16": 2,
    "u16": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Values of one tensor in a file.

    Attributes:
        kind: type and shape, as the format writes them; equal for tensors that correspond.
        width: bytes of one element; 1 where elements are smaller or of an unknown type.
        start, length: in the file, in bytes.
    """

    name: str
    kind: str
    width: int
    start: int
    length: int


def onnx_tensors(data: bytes) -> list[Tensor]:
    """Tensors of an ONNX file, by place; none when it is no protobuf."""
    found: list[Tensor] = []
    try:
        for number, wire, start, end in _fields(data, 0, len(data)):
            if number == _MODEL_GRAPH and wire == _BYTES:
                found += _graph(data, start, end, 0)
    except ValueError:
        return []
    return sorted(found, key=lambda tensor: tensor.start)


def openvino_tensors(description: bytes, length: int) -> list[Tensor]:
    """Tensors in the `.bin` of `length` bytes that `description`, the `.xml`, tells of."""
    try:
        root = ElementTree.fromstring(description)  # noqa: S314 (our own artefact, out of our store)
    except ElementTree.ParseError:
        return []
    found: dict[int, Tensor] = {}
    for layer in root.iter("layer"):
        constant = layer.find("data") if layer.get("type") == "Const" else None
        if constant is None:
            continue
        try:
            start, size = int(constant.get("offset", "")), int(constant.get("size", ""))
        except ValueError:
            continue
        kind = constant.get("element_type", "")
        width = _OPENVINO_WIDTHS.get(kind, 1)
        if size <= 0 or not 0 <= start <= length - size:
            continue
        tensor = Tensor(
            layer.get("name", ""),
            f"{kind}[{constant.get('shape', '')}]",
            width if size % width == 0 else 1,
            start,
            size,
        )
        found.setdefault(start, tensor)
    return sorted(found.values(), key=lambda tensor: tensor.start)


def _graph(data: bytes, start: int, end: int, depth: int) -> Iterator[Tensor]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs within graphs")
    for number, wire, begin, stop in _fields(data, start, end):
        if wire != _BYTES:
            continue
        if number == _GRAPH_INITIALIZER:
            yield from _tensor(data, begin, stop, "")
        elif number == _GRAPH_NODE:
            yield from _node(data, begin, stop, depth)


def _node(data: bytes, start: int, end: int, depth: int) -> Iterator[Tensor]:
    fields = list(_fields(data, start, end))
    name = next((data[b:e] for number, wire, b, e in fields if number == _NODE_NAME), b"")
    for number, wire, begin, stop in fields:
        if number != _NODE_ATTRIBUTE or wire != _BYTES:
            continue
        for inner, inner_wire, b, e in _fields(data, begin, stop):
            if inner_wire == _BYTES and inner == _ATTRIBUTE_TENSOR:
                yield from _tensor(data, b, e, name.decode("utf-8", "replace"))
            elif inner_wire == _BYTES and inner == _ATTRIBUTE_GRAPH:
                yield from _graph(data, b, e, depth + 1)


def _tensor(data: bytes, start: int, end: int, fallback: str) -> Iterator[Tensor]:
    shape: list[str] = []
    element, name, values = 0, fallback, None
    for number, wire, begin, stop in _fields(data, start, end):
        if number == _TENSOR_DIMS:
            shape.append(data[begin:stop].hex())
        elif number == _TENSOR_TYPE and wire == _VARINT:
            element = _varint(data, begin, stop)[0]
        elif number == _TENSOR_NAME and wire == _BYTES and stop > begin:
            name = data[begin:stop].decode("utf-8", "replace")
        elif number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES) and wire == _BYTES:
            values = (begin, stop)
    if values is None or values[0] == values[1]:
        return
    length = values[1] - values[0]
    width = _ONNX_WIDTHS.get(element, 1)
    kind = f"{element}[{','.join(shape)}]"
    yield Tensor(name, kind, width if length % width == 0 else 1, values[0], length)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where the value lies, of every field of one message.

    Raises:
        ValueError: this is no protobuf.
    """
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == _VARINT:
            _, stop = _varint(data, at, end)
        elif wire == _BYTES:
            length, at = _varint(data, at, end)
            stop = at + length
        elif wire in (_FIXED64, _FIXED32):
            stop = at + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if stop > end:
            raise ValueError("a field ends behind its message")
        yield key >> 3, wire, at, stop
        at = stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number without end")
