"""The task route's forms: JSON or an image in, one readable answer per item out.

    {"inputs": {"image": [[…]]}}        named inputs; one item or a batch
    {"instances": [[[…]], [[…]]]}       a batch for a model with one input, or
    {"instances": [{"image": […]}, …]}  one object of inputs per item

Beside them may stand "id" and "parameters".  Numbers must fit their datatype: nothing is rounded
to an integer, wrapped, or cut off.  BYTES are strings, in UTF-8.

More values than a request may hold are refused before they are decoded, and so are numbers that
cannot make the items of an input.  It knows no transport and no model; steps are not its business
either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import GenericAlias
from typing import Annotated, Any, Final, TypeAlias, cast

import msgspec
import numpy as np
from pydantic import JsonValue

from edge_agent.pipeline.answers import answer
from edge_agent.pipeline.errors import BadJson, nearest
from edge_agent.pipeline.image_file import decode_image
from edge_agent.pipeline.interface import Request, validate
from edge_agent.pipeline.json_values import most_values, too_many_values
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import TensorSpec

__all__ = ["answer", "decode_image", "decode_json", "decode_request", "tensors_from_values"]

_OPENERS: Final = b"[ \t\r\n"
_RawObject: TypeAlias = dict[str, msgspec.Raw]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    inputs: _RawObject | None = None
    instances: msgspec.Raw = msgspec.Raw(b"null")  # a list, which is not taken apart here
    id: str = ""
    parameters: dict[str, Any] = {}


_body: Final = msgspec.json.Decoder(_Body)
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])
_object: Final = msgspec.json.Decoder(_RawObject)
_FEW_VALUES: Final = 4096
"""So many are simply decoded, and what is wrong with them is told more exactly."""


def decode_json(body: bytes, specs: Sequence[TensorSpec]) -> Tensors:
    """The tensors of a JSON body, valid for `specs`.

    Raises:
        BadJson: it is no JSON, has another form, or a value does not fit its datatype.
        InputError: a tensor has another shape than its spec, or the items differ in number.
    """
    return decode_request(body, specs).tensors


def decode_request(body: bytes, specs: Sequence[TensorSpec]) -> Request:
    """As `decode_json`, with the "id" and the "parameters" that stand beside the inputs.

    Raises:
        BadJson: it is no JSON, has another form, or a value does not fit its datatype.
        InputError: a tensor has another shape than its spec, or the items differ in number.
    """
    if count := too_many_values(body, specs):
        raise BadJson(_too_many(count, specs))
    try:
        parsed = _body.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadJson(f"the body is not understood: {_line(error)}") from None
    instances = bytes(parsed.instances)
    if (parsed.inputs is None) == (instances == b"null"):
        raise BadJson('the body needs either "inputs" or "instances"')
    if parsed.inputs is not None:
        tensors = tensors_from_values(parsed.inputs, specs)
    else:
        tensors = _from_instances(instances, specs)
    return Request(tensors, parsed.id, cast(dict[str, JsonValue], parsed.parameters))


def tensors_from_values(
    values: Mapping[str, bytes | msgspec.Raw], specs: Sequence[TensorSpec]
) -> Tensors:
    """Tensors from the JSON text of each input; an input may be one item or a batch.

    Raises:
        BadJson: an input is missing or unknown, or a value does not fit its datatype.
        InputError: a tensor has another shape than its spec, or the items differ in number.
    """
    known = [spec.name for spec in specs]
    for name in values:
        if name not in known:
            raise BadJson(f"unknown input {name!r}{nearest(name, known)}")
    tensors: Tensors = {}
    for spec in specs:
        if spec.name not in values:
            raise BadJson(f"input {spec.name!r} is missing")
        tensors[spec.name] = _tensor(bytes(values[spec.name]), spec)
    validate(tensors, specs)
    return tensors


def _from_instances(raw: bytes, specs: Sequence[TensorSpec]) -> Tensors:
    if not raw.startswith(b"["):
        raise BadJson('"instances" must be a list')
    within = raw[1:].lstrip()
    if within.startswith(b"]"):
        raise BadJson('"instances" holds no items')
    if not within.startswith(b"{"):
        if len(specs) != 1:
            names = ", ".join(repr(spec.name) for spec in specs)
            raise BadJson(f"each of the instances must be an object with {names}")
        return tensors_from_values({specs[0].name: raw}, specs)
    columns: dict[str, list[bytes | msgspec.Raw]] = {spec.name: [] for spec in specs}
    for number, instance in enumerate(_list.decode(raw)):
        try:
            row = _object.decode(instance)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadJson(f"instance {number}: {_line(error)}") from None
        for name, value in row.items():
            if name not in columns:
                raise BadJson(f"instance {number}: unknown input {name!r}{nearest(name, columns)}")
            columns[name].append(value)
        for name, column in columns.items():
            if len(column) != number + 1:
                raise BadJson(f"instance {number}: input {name!r} is missing")
    return tensors_from_values({name: _joined(column) for name, column in columns.items()}, specs)


def _joined(values: Sequence[bytes | msgspec.Raw]) -> bytes:
    return b"[" + b",".join(bytes(value) for value in values) + b"]"


def _tensor(raw: bytes, spec: TensorSpec) -> Array:
    """The array of a JSON value, with the batch axis in front even where the value is one item."""
    rank = len(spec.shape)
    # JSON lists carry no depth of their own: the brackets before the first value tell it
    depth = raw[: len(raw) - len(raw.lstrip(_OPENERS))].count(b"[")
    if depth not in (rank, rank - 1):
        wanted = f"{rank} for a batch" + (f", {rank - 1} for one item" if rank else "")
        raise BadJson(f"input {spec.name!r}: lists are nested {depth} deep, expected {wanted}")
    dtype = numpy_dtype(spec.datatype)
    if len(raw) > _FEW_VALUES and dtype.kind != "O":
        _check_count(raw.count(b",") + 1, spec, one_item=depth < rank)
    try:
        values = _decoder(dtype.kind, depth).decode(raw)
        if dtype.kind == "O":
            array = _bytes_array(values)
        else:
            with np.errstate(over="raise"):
                array = np.array(values, dtype=dtype)
    except (
        msgspec.MsgspecError,
        ValueError,
        OverflowError,
        FloatingPointError,
        RecursionError,
    ) as error:
        raise BadJson(f"input {spec.name!r}: {_line(error)}") from None
    return array if depth == rank else array[None]


def _check_count(count: int, spec: TensorSpec, *, one_item: bool) -> None:
    """Refuse numbers that cannot make items of `spec`, before they are decoded."""
    if count > most_values((spec,)):
        raise BadJson(f"input {spec.name!r}: {_too_many(count, (spec,))}")
    inner = spec.shape[1:]
    if count <= _FEW_VALUES or any(size < 0 for size in inner):
        return
    item = math.prod(inner)
    if (count != item) if one_item else (not item or count % item):
        many = "one item" if one_item else "items"
        raise BadJson(f"input {spec.name!r}: {count} values do not make {many} of {list(inner)}")


def _too_many(count: int, specs: Sequence[TensorSpec]) -> str:
    return f"{count} values in JSON, at most {most_values(specs)}; send tensors as binary"


def _bytes_array(values: object) -> Array:
    """Strings, nested to one depth, as an object array of bytes."""
    text = np.array(values, dtype=object)
    flat = np.empty(text.size, dtype=object)
    for index, value in enumerate(text.ravel()):
        if not isinstance(value, str):
            raise ValueError("the lists have different lengths")
        flat[index] = value.encode()
    return flat.reshape(text.shape)


_SCALARS: Final[dict[str, Any]] = {
    "b": bool,
    "u": Annotated[int, msgspec.Meta(ge=0)],
    "i": int,
    "f": float,
    "O": str,
}


@lru_cache(maxsize=64)
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    """A decoder of scalars of `kind` in `depth` lists."""
    shape = _SCALARS[kind]
    for _ in range(depth):
        shape = GenericAlias(list, (shape,))
    return msgspec.json.Decoder(shape)


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if "inhomogeneous" in text:
        return "the lists have different lengths"
    if isinstance(error, FloatingPointError):
        return "a number is too large for the datatype"
    return text.splitlines()[0][:300]
