"""Base of all wire messages, and the frame for messages that carry bytes.

A frame is a little-endian u32 length, a JSON header of that length, and a payload of raw bytes.
It lets tensors and chunks travel without base64.
"""

from __future__ import annotations

import struct
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edge_agent.wire.errors import MalformedMessage, MessageTooLarge

MAX_MESSAGE_BYTES = 128 * 1024
"""Largest message on any topic; brokers of small machines refuse more."""

MAX_FRAME_HEADER_BYTES = 16 * 1024

_LENGTH = struct.Struct("<I")

H = TypeVar("H", bound="WireModel")


class WireModel(BaseModel):
    """A message or a part of one.  Immutable; unknown fields are preserved."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def encode(self) -> bytes:
        """The message as compact UTF-8 JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes, *, limit: int = MAX_MESSAGE_BYTES) -> Self:
        """Parse `data`.

        Raises:
            MessageTooLarge: `data` is longer than `limit` bytes.
            MalformedMessage: not JSON, or a field is missing or wrong.
        """
        if len(data) > limit:
            raise MessageTooLarge(cls.__name__, len(data), limit)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise MalformedMessage(f"{cls.__name__}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The first problem of a validation error in one line, without the offending value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "message"
    return f"{place}: {first['msg']}"


def pack_frame(header: WireModel, payload: bytes | memoryview) -> bytes:
    """Header and payload as one frame."""
    head = header.encode()
    return b"".join((_LENGTH.pack(len(head)), head, payload))


def unpack_frame(
    data: bytes, header_type: type[H], *, limit: int = MAX_MESSAGE_BYTES
) -> tuple[H, memoryview]:
    """Split a frame into its parsed header and a view of its payload.

    Raises:
        MessageTooLarge: the frame or its header exceeds its bound.
        MalformedMessage: truncated, or the header does not parse.
    """
    if len(data) > limit:
        raise MessageTooLarge("frame", len(data), limit)
    if len(data) < _LENGTH.size:
        raise MalformedMessage("frame: shorter than its length field")
    (length,) = _LENGTH.unpack_from(data)
    if length > MAX_FRAME_HEADER_BYTES:
        raise MessageTooLarge("frame header", length, MAX_FRAME_HEADER_BYTES)
    end = _LENGTH.size + length
    if len(data) < end:
        raise MalformedMessage("frame: shorter than its header")
    header = header_type.decode(data[_LENGTH.size : end], limit=MAX_FRAME_HEADER_BYTES)
    return header, memoryview(data)[end:]
