"""Tensors as the protocol carries them: little-endian bytes, and JSON values.

One place for every transport.  BF16 has no numpy type: inside, it is float32, which holds each of
its values.

Source: github.com/kserve/open-inference-protocol, "Tensor Data"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np

from edge_agent.pipeline import InputError
from edge_agent.pipeline.interface import validate
from edge_agent.pipeline.json_values import most_values
from edge_agent.runtime import (
    Array,
    Tensors,
    from_bfloat16,
    join_elements,
    numpy_dtype,
    split_elements,
    to_bfloat16,
)
from edge_agent.serve.errors import BadRequest
from edge_agent.wire.manifest import TensorSpec

MAX_RANK: Final = 8
MAX_BYTES_ELEMENTS: Final = 65_536
"""Elements of a BYTES tensor: each is an object of its own, and made one by one."""

ONLY_BINARY: Final = ("FP16", "BF16")
"""Types that JSON does not carry."""

_NOT_VALUES: Final = (msgspec.MsgspecError, ValueError, OverflowError, FloatingPointError)
_BF16: Final = "BF16"
_FEW_VALUES: Final = 4096
"""So many are simply read, and what is wrong with them is told more exactly."""
_UINT16: Final = np.dtype("<u2")


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    """The numpy type that carries `datatype` inside.

    Raises:
        BadRequest: the protocol has no such type.
    """
    try:
        return numpy_dtype(datatype)
    except ValueError as error:
        raise BadRequest(f"input {name!r}: {error}") from None


def item_bytes(name: str, datatype: str) -> int:
    """Bytes of one element on the wire; 0 for BYTES, whose elements have lengths of their own.

    Raises:
        BadRequest: the protocol has no such type.
    """
    if datatype == _BF16:
        return _UINT16.itemsize
    dtype = dtype_of(name, datatype)
    return 0 if dtype.kind == "O" else dtype.itemsize


def check_datatype(name: str, datatype: str, inputs: Sequence[TensorSpec]) -> None:
    """Tell BF16 from FP32, which arrays cannot; the pipeline checks every other type.

    Raises:
        InputError: the interface has the one, the client sends the other.
    """
    for spec in inputs:
        if spec.name == name and {datatype, spec.datatype} == {"BF16", "FP32"}:
            raise InputError(f"input {name!r} is {datatype}, expected {spec.datatype}")


def check_announced(
    announced: Sequence[tuple[str, str, tuple[int, ...]]], inputs: Sequence[TensorSpec]
) -> None:
    """Hold what a request says of its inputs to the interface, before their data is looked at.

    Args:
        announced: name, datatype and shape of each input.
        inputs: the interface; any input fits an empty one.

    Raises:
        BadRequest: an input is given twice, or its datatype or shape is none.
        InputError: they do not fit, in the words of the pipeline.
    """
    arrays: Tensors = {}
    for name, datatype, shape in announced:
        if name in arrays:
            raise BadRequest(f"input {name!r} is given twice")
        check_datatype(name, datatype, inputs)
        check_shape(name, shape)
        try:
            arrays[name] = np.broadcast_to(_element(dtype_of(name, datatype)), shape)
        except (ValueError, OverflowError):  # no array is as large
            raise BadRequest(f"input {name!r}: data do not make the shape {list(shape)}") from None
    if inputs:
        validate(arrays, inputs)


def check_json_values(count: int, inputs: Sequence[TensorSpec]) -> None:
    """Refuse more values in JSON than can be read without holding everybody up.

    Raises:
        BadRequest: they are more than `most_values`.
    """
    most = most_values(inputs)
    if count > most:
        raise BadRequest(f"{count} values in JSON, at most {most}; send them as binary")


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse shapes that no tensor has.

    Raises:
        BadRequest: more than `MAX_RANK` axes, or a negative one.
    """
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise BadRequest(f"input {name!r}: shape {list(shape)[:16]} is not valid")


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """A tensor from its binary form; a view of `data` where alignment and type allow.

    Raises:
        BadRequest: the length does not fit the shape, or an element of BYTES exceeds the data.
    """
    count = math.prod(shape)
    size = item_bytes(name, datatype)
    if size == 0:
        _check_elements(name, count)
        try:
            elements = split_elements(data, count)
        except ValueError as error:
            raise BadRequest(f"input {name!r}: {error}") from None
        return reshaped(name, elements, shape)
    if len(data) != count * size:
        raise BadRequest(
            f"input {name!r}: {len(data)} bytes, {datatype} {list(shape)} takes {count * size}"
        )
    if datatype == _BF16:
        array = from_bfloat16(np.frombuffer(data, dtype=_UINT16))
    else:
        array = np.frombuffer(data, dtype=dtype_of(name, datatype))
        if datatype == "BOOL" and array.size and int(array.view(np.uint8).max()) > 1:
            raise BadRequest(f"input {name!r}: a BOOL is a byte of 0 or 1")
    array = reshaped(name, array, shape)
    # The JSON before it has any length, and runtimes read through aligned pointers.
    return array if array.flags.aligned else array.copy()


def to_bytes(array: Array, datatype: str) -> bytes:
    """The binary form of a tensor."""
    if array.dtype.kind in "OSU":
        return join_elements(array)
    if datatype == _BF16:
        return to_bfloat16(array).tobytes()
    return array.tobytes()


def from_json(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Array:
    """A tensor from a JSON list, nested or flat.  Nothing is rounded to another kind or wrapped.

    Raises:
        BadRequest: a value does not fit the type, or their number the shape.
    """
    if not raw:
        raise BadRequest(f"input {name!r} has neither data nor binary_data_size")
    if datatype in ONLY_BINARY:
        raise BadRequest(f"input {name!r}: {datatype} travels as binary only")
    dtype = dtype_of(name, datatype)
    nested = raw[1:].lstrip()[:1] == b"["
    count = math.prod(shape)
    if dtype.kind == "O":
        _check_elements(name, count)
        # a quote opens each, and closes it; no other stands in it without a backslash
        least = (raw.count(b'"') - raw.count(b'\\"')) // 2
    else:
        least = raw.count(b",") + 1
    if least > max(count, _FEW_VALUES):
        raise BadRequest(f"input {name!r}: {least} values do not make the shape {list(shape)}")
    try:
        array = _array(raw, dtype, len(shape) if nested else 1)
    except _NOT_VALUES as error:
        raise BadRequest(f"input {name!r}: {first_line(error)}") from None
    if array.size != count or (nested and array.shape != shape):
        raise BadRequest(f"input {name!r}: {array.size} values do not make the shape {list(shape)}")
    return reshaped(name, array, shape)


def flat_numbers(datatype: str, count: int, raw: bytes) -> Array | None:
    """A flat JSON list of `count` numbers; None when it is anything else."""
    if raw.count(b",") + 1 != count:
        return None
    try:
        array = _array(raw, numpy_dtype(datatype), 1)
    except _NOT_VALUES:
        return None
    return array if array.size == count else None


def _array(raw: bytes, dtype: np.dtype[Any], rank: int) -> Array:
    values = _decoder(dtype.kind, rank).decode(raw)
    if dtype.kind == "O":
        values = _encoded(values)
    with np.errstate(over="raise"):
        return np.array(values, dtype=dtype)


def _check_elements(name: str, count: int) -> None:
    if count > MAX_BYTES_ELEMENTS:
        raise BadRequest(f"input {name!r}: {count} elements of BYTES, at most {MAX_BYTES_ELEMENTS}")


def to_json(name: str, datatype: str, array: Array) -> object:
    """Flat row-major values.  JSON has no NaN or infinity; those become null.

    Raises:
        BadRequest: the type travels as binary only, or bytes are no text.
    """
    if datatype in ONLY_BINARY:
        raise BadRequest(f"output {name!r}: {datatype} travels as binary only")
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).ravel()
    try:
        return [
            element.decode() if isinstance(element, bytes) else str(element)
            for element in array.ravel()
        ]
    except UnicodeDecodeError:
        raise BadRequest(f"output {name!r} is not text; ask for it as binary") from None


def reshaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """`array`, whose size is that of `shape`; without elements the axes may still be too long.

    Raises:
        BadRequest: numpy has no such array.
    """
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"input {name!r}: shape {list(shape)}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@cache
def _element(dtype: np.dtype[Any]) -> Array:
    return np.empty((), dtype)


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
