"""The Open Inference Protocol v2 as bytes: requests in, answers out, JSON and binary.

Knows no transport beyond the length of the JSON head, and no model beyond its interface.

Rules:
    * A body is JSON, or JSON followed by little-endian tensors in the order of the JSON.
    * A head length of zero means the body is the one input's bytes alone.
    * JSON numbers must fit their datatype; nothing is rounded or wrapped silently.
    * A client's binary requests differ in their tensors, hardly in their JSON.  So the JSON of a
      binary request is understood once, as a `Plan`, which then reads every body with that JSON.

Source: github.com/kserve/open-inference-protocol (inference_rest.md); binary extension:
github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import orjson

from edge_agent.pipeline.json_values import too_many_values
from edge_agent.runtime import Array, Tensors, datatype_of
from edge_agent.serve import tensors as forms
from edge_agent.serve.errors import BadRequest, BodyTooLarge
from edge_agent.serve.prediction import Prediction
from edge_agent.wire.manifest import TensorSpec

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_ID_CHARS: Final = 64
MAX_TENSORS: Final = 1024
"""Inputs that a request may give, and outputs that it may name."""

MAX_KEPT_HEAD_BYTES: Final = 2048
MAX_KEPT_PLANS: Final = 64
_MAX_TIMEOUT_US: Final = 24 * 3600 * 10**6
_SMALL_BYTES: Final = 4096


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
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=MAX_TENSORS)]
    id: str = ""
    parameters: dict[str, object] = {}
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=MAX_TENSORS)] = []


_REQUEST: Final = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class Part:
    """Where an input's bytes stand in the body, and what they are."""

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int
    start: int
    stop: int
    plain: bool
    """Every pattern of bits is a value, so the bytes need no look."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants beside its tensors.

    Attributes:
        id: the client's id, or empty.
        outputs: names wanted and whether as binary; empty means all, by `binary`.
        binary: whether outputs are binary unless they say otherwise.
        timeout_s: as the parameter `timeout`, which is in microseconds; None without.
        trace: the parameter `trace`: every step's tensors are wanted too.
    """

    id: str = ""
    outputs: tuple[tuple[str, bool], ...] = ()
    binary: bool = False
    timeout_s: float | None = None
    trace: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The JSON of a binary request, understood: how to read its body, and what it wants.

    Attributes:
        length: of the whole body.
    """

    ask: Ask
    parts: tuple[Part, ...]
    length: int

    def read(self, body: bytes) -> Tensors:
        """The tensors of a body with this JSON.

        Raises:
            BadRequest: the body has another length, or a value is none of its type.
        """
        if len(body) != self.length:
            raise BadRequest(f"a body of {len(body)} bytes; its JSON describes {self.length}")
        tensors: Tensors = {}
        for part in self.parts:
            if part.plain:
                size = part.stop - part.start
                if size <= _SMALL_BYTES:
                    # a copy is aligned, and cheaper than finding out whether a view would be
                    array = np.frombuffer(body[part.start : part.stop], part.dtype)
                else:
                    array = np.frombuffer(body, part.dtype, part.count, part.start)
                    if not array.flags.aligned:
                        array = array.copy()
                tensors[part.name] = array.reshape(part.shape)
            else:
                data = memoryview(body)[part.start : part.stop]
                tensors[part.name] = forms.from_bytes(part.name, part.datatype, part.shape, data)
        return tensors


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded answer: the body's parts, and the JSON's length if binary tensors follow it."""

    parts: list[bytes]
    head_length: int | None


@dataclass(slots=True)
class Form:
    """The answer to one kind of binary request, but for the id and the tensors' bytes.

    Attributes:
        head_length, length: of the JSON and of the whole body; ids have the same length.
    """

    prefix: bytes
    suffix: bytes
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    id_length: int
    head_length: int
    length: int

    @classmethod
    def of(cls, answer: Answer, prediction: Prediction, ask: Ask) -> Form | None:
        """The form of an answer, if others can have it: binary throughout, of fixed sizes."""
        names = [name for name, _ in ask.outputs] or list(prediction.outputs)
        if ask.trace or answer.head_length is None or len(answer.parts) != 1 + len(names):
            return None
        by_name = {spec.name: spec.datatype for spec in prediction.manifest.outputs}
        if any(by_name.get(name) in (None, "BYTES", "BF16") for name in names):
            return None
        head = answer.parts[0]
        prediction_id = prediction.prediction_id.encode()
        prefix, found, suffix = head.partition(b'"id":"' + prediction_id + b'"')
        if not found:
            return None  # a client's id that JSON writes otherwise
        return cls(
            prefix + b'"id":"',
            b'"' + suffix,
            tuple((name, prediction.outputs[name].shape) for name in names),
            len(prediction_id),
            len(head),
            sum(map(len, answer.parts)),
        )

    def fill(self, prediction: Prediction) -> list[bytes] | None:
        """The body's parts; None when this prediction has another form."""
        prediction_id = prediction.prediction_id.encode()
        if len(prediction_id) != self.id_length:
            return None
        parts = [self.prefix, prediction_id, self.suffix]
        outputs = prediction.outputs
        for name, shape in self.outputs:
            array = outputs[name]
            if array.shape != shape:
                return None
            parts.append(array.tobytes())
        return parts


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
    if engine.unused_data:
        raise BadRequest(f"{len(engine.unused_data)} bytes after the {encoding} body")
    return data


def plan(head: bytes, length: int, inputs: Sequence[TensorSpec] = ()) -> Plan | None:
    """Understand the JSON of a request of which tensors follow in binary.

    Args:
        head: the JSON.
        length: of the whole body.
        inputs: the model's interface; see `tensors.check_announced`.

    Returns:
        None when an input stands in the JSON itself, so that every body must be decoded.

    Raises:
        BadRequest: the request is malformed.
        InputError: an input is not of the interface.
    """
    request = _parse(head, inputs)
    _check_announced(request, inputs)
    parts: dict[str, Part] = {}
    offset = len(head)
    for item in request.inputs:
        size = item.parameters.get("binary_data_size")
        if size is None:
            return None
        part = parts[item.name] = _part(item, size, offset, length)
        offset = part.stop
    if offset != length:
        raise BadRequest(f"{length - offset} bytes after the last binary tensor")
    return Plan(_ask(request), tuple(parts.values()), length)


def decode(
    body: bytes, head_length: int | None, inputs: Sequence[TensorSpec] = ()
) -> tuple[Tensors, Ask]:
    """Decode any request but a raw one.

    Args:
        head_length: the header `Inference-Header-Content-Length`, if there was one.
        inputs: the model's interface; see `tensors.check_announced`.

    Raises:
        BadRequest: the request is malformed.
        InputError: an input is not of the interface.
    """
    end = len(body) if head_length is None else check_head_length(head_length, body)
    request = _parse(body if end == len(body) else body[:end], inputs)
    _check_announced(request, inputs)
    tensors: Tensors = {}
    offset = end
    values = 0
    for item in request.inputs:
        shape = tuple(item.shape)
        size = item.parameters.get("binary_data_size")
        if size is None:
            values += math.prod(shape)
            forms.check_json_values(values, inputs)
            tensors[item.name] = forms.from_json(item.name, item.datatype, shape, bytes(item.data))
            continue
        part = _part(item, size, offset, len(body))
        data = memoryview(body)[part.start : part.stop]
        tensors[item.name] = forms.from_bytes(item.name, item.datatype, shape, data)
        offset = part.stop
    if offset != len(body):
        raise BadRequest(f"{len(body) - offset} bytes after the last binary tensor")
    return tensors, _ask(request)


def check_head_length(head_length: int, body: bytes) -> int:
    """`head_length`, if a JSON of that length may begin `body`.

    Raises:
        BadRequest: it may not.
    """
    if not 0 < head_length <= len(body):
        raise BadRequest(f"a JSON head of {head_length} bytes in a body of {len(body)}")
    return head_length


def decode_raw(body: bytes, inputs: Sequence[TensorSpec]) -> tuple[Tensors, Ask]:
    """The one input of a model from a body without JSON; one free axis follows from the length.

    Raises:
        BadRequest: the model has more inputs, or the length does not fit.
    """
    if len(inputs) != 1:
        raise BadRequest(f"a raw body needs a model of one input, not {len(inputs)}")
    spec = inputs[0]
    if spec.datatype == "BYTES":
        array = np.empty(1, dtype=np.object_)
        array[0] = body
        return {spec.name: array.reshape([1] * len(spec.shape))}, Ask(binary=True)
    known = math.prod(size for size in spec.shape if size >= 0)
    known *= forms.item_bytes(spec.name, spec.datatype)
    free = [size for size in spec.shape if size < 0]
    if len(free) > 1 or known == 0 or (len(body) % known if free else len(body) != known):
        raise BadRequest(f"{len(body)} bytes do not make {spec.datatype} {list(spec.shape)}")
    shape = tuple(len(body) // known if size < 0 else size for size in spec.shape)
    tensor = forms.from_bytes(spec.name, spec.datatype, shape, memoryview(body))
    return {spec.name: tensor}, Ask(binary=True)


def encode(ask: Ask, prediction: Prediction) -> Answer:
    """Encode the answer to a request.

    Raises:
        BadRequest: it wants an output that the model does not have, or one that JSON cannot carry.
    """
    manifest = prediction.manifest
    outputs = prediction.outputs
    wanted = ask.outputs or [(name, ask.binary) for name in outputs]
    described: list[dict[str, object]] = []
    tail: list[bytes] = []
    for name, binary in wanted:
        array = outputs.get(name)
        if array is None:
            raise BadRequest(f"unknown output {name[:80]!r}; there are {', '.join(outputs)}")
        datatype = _datatype(name, array, manifest.outputs)
        _describe_output(described, tail, name, datatype, array, binary)
    for index, (step, made) in enumerate(prediction.steps):
        for name, array in made.items():
            datatype = _datatype(name, array, ())
            as_binary = ask.binary or datatype in forms.ONLY_BINARY
            _describe_output(
                described, tail, f"step:{index}:{step}:{name}", datatype, array, as_binary
            )
    head = orjson.dumps(
        {
            "model_name": manifest.model,
            "model_version": str(manifest.version),
            "id": prediction.prediction_id,
            "outputs": described,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return Answer([head, *tail], len(head) if tail else None)


def _describe_output(
    described: list[dict[str, object]],
    tail: list[bytes],
    name: str,
    datatype: str,
    array: Array,
    binary: bool,
) -> None:
    entry: dict[str, object] = {"name": name, "datatype": datatype, "shape": array.shape}
    if binary:
        data = forms.to_bytes(array, datatype)
        entry["parameters"] = {"binary_data_size": len(data)}
        tail.append(data)
    else:
        entry["data"] = forms.to_json(name, datatype, array)
    described.append(entry)


def _datatype(name: str, array: Array, specs: Sequence[TensorSpec]) -> str:
    """As the interface names it, for BF16 is float32 inside; else by the array."""
    for spec in specs:
        if spec.name == name:
            return spec.datatype
    try:
        return datatype_of(array.dtype)
    except ValueError as error:
        raise BadRequest(f"output {name!r}: {error}") from None


def _parse(head: bytes, inputs: Sequence[TensorSpec]) -> _Request:
    if count := too_many_values(head, inputs):
        forms.check_json_values(count, inputs)
    try:
        request = _REQUEST.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request is not valid: {forms.first_line(error)}") from None
    if len(request.id) > MAX_ID_CHARS:
        raise BadRequest(f"id: longer than {MAX_ID_CHARS} characters")
    return request


def _check_announced(request: _Request, inputs: Sequence[TensorSpec]) -> None:
    announced = [(item.name, item.datatype, tuple(item.shape)) for item in request.inputs]
    forms.check_announced(announced, inputs)


def _ask(request: _Request) -> Ask:
    parameters = request.parameters
    binary = bool(parameters.get("binary_data_output", False))
    outputs: dict[str, bool] = {}
    for output in request.outputs:
        if output.parameters.get("classification"):
            raise BadRequest("the classification extension is not supported")
        if "shared_memory_region" in output.parameters:  # else nobody would ever write to it
            raise BadRequest(f"output {output.name!r}: shared memory is not supported")
        if output.name in outputs:  # a few bytes for each copy would fill the memory
            raise BadRequest(f"output {output.name!r} is wanted twice")
        outputs[output.name] = bool(output.parameters.get("binary_data", binary))
    return Ask(
        request.id,
        tuple(outputs.items()),
        binary,
        timeout_s_of(parameters.get("timeout")),
        bool(parameters.get("trace", False)),
    )


def timeout_s_of(timeout_us: object) -> float | None:
    """The parameter `timeout`, in microseconds; None and 0 mean none.

    Raises:
        BadRequest: not a whole number of up to a day.
    """
    if timeout_us is None:
        return None
    if isinstance(timeout_us, str) and timeout_us.isdecimal():
        timeout_us = int(timeout_us[:20])
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
        raise BadRequest("parameter 'timeout': must be a whole number of microseconds")
    return min(timeout_us, _MAX_TIMEOUT_US) / 1e6 if timeout_us else None


def _part(item: _Input, size: object, offset: int, length: int) -> Part:
    """The place of an input's bytes."""
    name, shape = item.name, tuple(item.shape)
    forms.check_shape(name, shape)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= length - offset:
        raise BadRequest(f"input {name!r}: binary_data_size {size!r} exceeds the body")
    width = forms.item_bytes(name, item.datatype)
    count = math.prod(shape)
    if width and size != count * width:
        raise BadRequest(
            f"input {name!r}: {size} bytes, {item.datatype} {list(shape)} takes {count * width}"
        )
    if count == 0:  # without elements the axes may still be too long for any array
        forms.reshaped(name, np.empty(0), shape)
    plain = item.datatype not in ("BYTES", "BF16", "BOOL")
    dtype = forms.dtype_of(name, item.datatype)
    return Part(name, item.datatype, dtype, shape, count, offset, offset + size, plain)
