"""The Open Inference Protocol v2 as bytes: requests in, answers out, JSON and binary.

Knows no transport beyond the length of the JSON head, and no model beyond its interface.

Rules:
    * A body is JSON, or JSON followed by little-endian tensors in the order of the JSON.
    * A head length of zero means the body is the one input's bytes alone.
    * JSON numbers must fit their datatype; nothing is rounded or wrapped silently.

Source: github.com/kserve/open-inference-protocol (inference_rest.md); binary extension:
github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from edge_agent.runtime import Array, Tensors, datatype_of, numpy_dtype
from edge_agent.serve.errors import BadRequest, BodyTooLarge
from edge_agent.wire.manifest import Manifest, TensorSpec

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_ID_CHARS: Final = 64
_MAX_RANK: Final = 8

_U32: Final = struct.Struct("<I")
_ONLY_BINARY: Final = ("FP16", "BF16")


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, object] = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, object] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, object] = {}
    outputs: list[_Output] = []


_REQUEST: Final = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class Call:
    """A decoded request.

    Attributes:
        id: the client's id, or empty.
        outputs: names wanted and whether as binary; empty means all, by `binary`.
        binary: whether outputs are binary unless they say otherwise.
    """

    tensors: Tensors
    id: str = ""
    outputs: tuple[tuple[str, bool], ...] = ()
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded answer: the body's parts, and the JSON's length if binary tensors follow it."""

    parts: list[bytes]
    head_length: int | None


def inflate(body: bytes, encoding: str) -> bytes:
    """Undo a content encoding ("gzip", "deflate", "identity" or empty), within the bound.

    Raises:
        BadRequest: another encoding, or the body is damaged.
        BodyTooLarge: more than `MAX_BODY_BYTES` come out.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadRequest(f"content encoding {encoding[:40]!r} is not supported")
    engine = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever the first bytes say
    try:
        data = engine.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding}: {error}") from None
    if len(data) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    if not engine.eof:
        raise BadRequest(f"the {encoding} body is cut short")
    return data


def decode(body: bytes, head_length: int | None, inputs: Sequence[TensorSpec]) -> Call:
    """Decode an inference request.

    Args:
        head_length: the header `Inference-Header-Content-Length`, if there was one.
        inputs: the model's interface; used for a raw body only.

    Raises:
        BadRequest: the request is malformed.
    """
    if head_length == 0:
        return Call(_raw(body, inputs), binary=True)
    if head_length is not None and not 0 < head_length <= len(body):
        raise BadRequest(f"a JSON head of {head_length} bytes in a body of {len(body)}")
    head = body if head_length is None else memoryview(body)[:head_length]
    try:
        request = _REQUEST.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request is not valid: {_line(error)}") from None
    if len(request.id) > MAX_ID_CHARS:
        raise BadRequest(f"id: longer than {MAX_ID_CHARS} characters")
    tail = memoryview(body)[head_length:] if head_length is not None else memoryview(b"")
    tensors: Tensors = {}
    offset = 0
    for item in request.inputs:
        if item.name in tensors:
            raise BadRequest(f"input {item.name!r} is given twice")
        shape = _shape(item)
        size = item.parameters.get("binary_data_size")
        if size is None:
            tensors[item.name] = _from_json(item, shape)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(tail) - offset:
            raise BadRequest(f"input {item.name!r}: binary_data_size {size!r} exceeds the body")
        tensors[item.name] = _from_bytes(item, shape, tail[offset : offset + size])
        offset += size
    if offset != len(tail):
        raise BadRequest(f"{len(tail) - offset} bytes after the last binary tensor")
    binary = bool(request.parameters.get("binary_data_output", False))
    return Call(
        tensors,
        request.id,
        tuple(_wanted(output, binary) for output in request.outputs),
        binary,
    )


def encode(call: Call, manifest: Manifest, prediction_id: str, outputs: Tensors) -> Answer:
    """Encode the answer to `call`.

    Raises:
        BadRequest: it wants an output that the model does not have, or one that JSON cannot carry.
    """
    wanted = call.outputs or tuple((name, call.binary) for name in outputs)
    described: list[dict[str, object]] = []
    tail: list[bytes] = []
    for name, binary in wanted:
        array = outputs.get(name)
        if array is None:
            raise BadRequest(f"unknown output {name!r}; there are {', '.join(outputs)}")
        datatype = datatype_of(array.dtype)
        entry: dict[str, object] = {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
        }
        if binary:
            data = _to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = _to_json(name, datatype, array)
        described.append(entry)
    head = orjson.dumps(
        {
            "model_name": manifest.model,
            "model_version": str(manifest.version),
            "id": prediction_id,
            "outputs": described,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return Answer([head, *tail], len(head) if tail else None)


def describe(manifest: Manifest) -> dict[str, object]:
    """Model metadata."""

    def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
            for spec in specs
        ]

    return {
        "name": manifest.model,
        "versions": [str(manifest.version)],
        "platform": f"skerry_{manifest.network.runtime}",
        "inputs": tensors(manifest.inputs),
        "outputs": tensors(manifest.outputs),
    }


def _wanted(output: _Output, default: bool) -> tuple[str, bool]:
    if output.parameters.get("classification"):
        raise BadRequest("the classification extension is not supported")
    return output.name, bool(output.parameters.get("binary_data", default))


def _shape(item: _Input) -> tuple[int, ...]:
    shape = tuple(item.shape)
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise BadRequest(f"input {item.name!r}: shape {list(shape)[:16]} is not valid")
    return shape


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    try:
        return numpy_dtype(datatype)
    except ValueError as error:
        raise BadRequest(f"input {name!r}: {error}") from None


def _from_json(item: _Input, shape: tuple[int, ...]) -> Array:
    raw = bytes(item.data)
    if not raw:
        raise BadRequest(f"input {item.name!r} has neither data nor binary_data_size")
    if item.datatype in _ONLY_BINARY:
        raise BadRequest(f"input {item.name!r}: {item.datatype} travels as binary only")
    dtype = _dtype(item.name, item.datatype)
    nested = raw[1:].lstrip()[:1] == b"["
    try:
        values = _decoder(dtype.kind, len(shape) if nested else 1).decode(raw)
        if dtype.kind == "O":
            values = _encoded(values)
        with np.errstate(over="raise"):
            array = np.array(values, dtype=dtype)
    except (msgspec.MsgspecError, ValueError, OverflowError, FloatingPointError) as error:
        raise BadRequest(f"input {item.name!r}: {_line(error)}") from None
    if array.size != math.prod(shape) or (nested and array.shape != shape):
        raise BadRequest(
            f"input {item.name!r}: {array.size} values do not make the shape {list(shape)}"
        )
    return _reshaped(item.name, array, shape)


@cache
def _decoder(kind: str, rank: int) -> msgspec.json.Decoder[Any]:
    """A strict decoder of lists nested `rank` deep: an integer type takes no 1.5, and so on."""
    kinds: dict[str, Any] = {"f": float, "i": int, "u": int, "b": bool, "O": str}
    element: Any = kinds[kind]
    for _ in range(max(rank, 1)):
        element = list[element]
    return msgspec.json.Decoder(element)


def _encoded(values: Any) -> Any:
    return [_encoded(value) if isinstance(value, list) else value.encode() for value in values]


def _from_bytes(item: _Input, shape: tuple[int, ...], data: memoryview) -> Array:
    dtype = _dtype(item.name, item.datatype)
    count = math.prod(shape)
    if dtype.kind == "O":
        return _reshaped(item.name, _split_bytes(item.name, data, count), shape)
    if len(data) != count * dtype.itemsize:
        raise BadRequest(
            f"input {item.name!r}: {len(data)} bytes, "
            f"{item.datatype} {list(shape)} takes {count * dtype.itemsize}"
        )
    array = _reshaped(item.name, np.frombuffer(data, dtype=dtype), shape)
    # The JSON before it has any length, and runtimes read through aligned pointers.
    return array if array.flags.aligned else array.copy()


def _reshaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """`array`, whose size is that of `shape`; without elements the axes may still be too long."""
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"input {name!r}: shape {list(shape)}: {_line(error)}") from None


def _split_bytes(name: str, data: memoryview, count: int) -> Array:
    if count > len(data) // _U32.size:
        raise BadRequest(f"input {name!r}: {count} elements do not fit into {len(data)} bytes")
    array = np.empty(count, dtype=np.object_)
    offset = 0
    for index in range(count):
        if len(data) - offset < _U32.size:
            raise BadRequest(f"input {name!r}: cut short at element {index}")
        (length,) = _U32.unpack_from(data, offset)
        offset += _U32.size
        if length > len(data) - offset:
            raise BadRequest(f"input {name!r}: element {index} exceeds the data")
        array[index] = bytes(data[offset : offset + length])
        offset += length
    if offset != len(data):
        raise BadRequest(f"input {name!r}: {len(data) - offset} bytes too many")
    return array


def _raw(body: bytes, inputs: Sequence[TensorSpec]) -> Tensors:
    """The one input of a model from a body without JSON; one free axis follows from the length."""
    if len(inputs) != 1:
        raise BadRequest(f"a raw body needs a model of one input, not {len(inputs)}")
    spec = inputs[0]
    dtype = _dtype(spec.name, spec.datatype)
    if dtype.kind == "O":
        array = np.empty(1, dtype=np.object_)
        array[0] = body
        return {spec.name: array.reshape([1] * len(spec.shape))}
    known = math.prod(size for size in spec.shape if size >= 0) * dtype.itemsize
    free = [size for size in spec.shape if size < 0]
    if len(free) > 1 or known == 0 or (len(body) % known if free else len(body) != known):
        raise BadRequest(f"{len(body)} bytes do not make {spec.datatype} {list(spec.shape)}")
    return {spec.name: np.frombuffer(body, dtype=dtype).reshape(spec.shape)}


def _to_bytes(array: Array) -> bytes:
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).tobytes()
    parts: list[bytes] = []
    for element in array.ravel():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += (_U32.pack(len(data)), data)
    return b"".join(parts)


def _to_json(name: str, datatype: str, array: Array) -> object:
    """Flat row-major values.  JSON has no NaN or infinity; those become null."""
    if datatype in _ONLY_BINARY:
        raise BadRequest(f"output {name!r}: {datatype} travels as binary only")
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).ravel()
    try:
        return [
            element.decode() if isinstance(element, bytes) else str(element)
            for element in array.ravel()
        ]
    except UnicodeDecodeError:
        raise BadRequest(f"output {name!r} is not text; ask for it as binary") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
