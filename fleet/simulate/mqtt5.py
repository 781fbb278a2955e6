"""MQTT 5 on the wire, as far as a device needs it: packets to bytes, and bytes to packets.

Pure: no sockets, no clock.  QoS 0 and 1; no topic aliases (none are offered, so none may come), no
authentication exchange: identities are certificates.

Source: MQTT Version 5.0, OASIS Standard, sections 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

MAX_PACKET_BYTES: Final = 256 * 1024
"""Longest packet that is read; more than the contract's largest message with its topic."""

PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"
"""Orderly: the broker drops the will."""

REFUSED: Final = 0x80
"""Reason codes from here on are failures."""

RECEIVE_MAXIMUM: Final = 0x21
SERVER_KEEP_ALIVE: Final = 0x13
_SESSION_EXPIRY: Final = 0x11
_WILL_DELAY: Final = 0x18

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

_BYTE, _TWO, _FOUR, _VARIABLE, _TEXT, _PAIR = range(6)
_PROPERTY_KINDS: Final = {
    0x01: _BYTE, 0x02: _FOUR, 0x03: _TEXT, 0x08: _TEXT, 0x09: _TEXT, 0x0B: _VARIABLE, 0x11: _FOUR,
    0x12: _TEXT, 0x13: _TWO, 0x15: _TEXT, 0x16: _TEXT, 0x17: _BYTE, 0x18: _FOUR, 0x19: _BYTE,
    0x1A: _TEXT, 0x1C: _TEXT, 0x1F: _TEXT, 0x21: _TWO, 0x22: _TWO, 0x23: _TWO, 0x24: _BYTE,
    0x25: _BYTE, 0x26: _PAIR, 0x27: _FOUR, 0x28: _BYTE, 0x29: _BYTE, 0x2A: _BYTE,
}  # fmt: skip


class BadPacket(ValueError):
    """The broker sent something that is no MQTT 5; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained at QoS 1, when the connection is lost."""

    topic: str
    payload: bytes
    delay_s: int = 20


@dataclass(frozen=True, slots=True)
class Connack:
    """Answer to CONNECT.  `receive_maximum`: publishes at QoS 1 that may be unanswered at once."""

    reason: int
    session_present: bool
    receive_maximum: int
    keepalive_s: int | None


@dataclass(frozen=True, slots=True)
class Publish:
    """A message to us; `mid` is 0 at QoS 0."""

    topic: str
    payload: bytes
    mid: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Puback:
    """The broker's answer to a publish of ours."""

    mid: int
    reason: int


@dataclass(frozen=True, slots=True)
class Suback:
    """The broker's answer to a subscription of ours, one reason a filter."""

    mid: int
    reasons: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The broker ends the connection, and says why."""

    reason: int


Packet = Connack | Publish | Puback | Suback | Pong | Disconnected


# ── to the broker ────────────────────────────────────────────────────────────────────────────────


def connect(
    client_id: str,
    *,
    keepalive_s: int,
    session_expiry_s: int,
    will: Will | None,
    clean_start: bool = False,
) -> bytes:
    """CONNECT without user name: the certificate names the client."""
    flags = 0x02 if clean_start else 0
    properties = bytes((_SESSION_EXPIRY,)) + _U32.pack(session_expiry_s)
    payload = _text(client_id)
    if will is not None:
        flags |= 0x04 | 0x08 | 0x20  # will, its QoS 1, retained
        will_properties = bytes((_WILL_DELAY,)) + _U32.pack(will.delay_s)
        payload += _variable(len(will_properties)) + will_properties
        payload += _text(will.topic) + _U16.pack(len(will.payload)) + will.payload
    head = b"\x00\x04MQTT\x05" + bytes((flags,)) + _U16.pack(keepalive_s)
    return _packet(0x10, head + _variable(len(properties)) + properties + payload)


def publish(topic: str, payload: bytes, *, mid: int = 0, retain: bool = False) -> bytes:
    """PUBLISH at QoS 1 with `mid`, at QoS 0 with none."""
    kind = 0x30 | (0x02 if mid else 0) | (0x01 if retain else 0)
    middle = _U16.pack(mid) + b"\x00" if mid else b"\x00"
    return _packet(kind, b"".join((_text(topic), middle, payload)))


def subscribe(mid: int, filters: Sequence[str]) -> bytes:
    """SUBSCRIBE to all of `filters` at QoS 1."""
    return _packet(0x82, _U16.pack(mid) + b"\x00" + b"".join(_text(f) + b"\x01" for f in filters))


def puback(mid: int) -> bytes:
    """PUBACK: success."""
    return b"\x40\x02" + _U16.pack(mid)


def _packet(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + _variable(len(body)) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return _U16.pack(len(data)) + data


def _variable(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


# ── from the broker ──────────────────────────────────────────────────────────────────────────────


class Reader:
    """Cuts what arrives into packets.  Holds the unfinished rest only."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Packets that are whole now.

        Raises:
            BadPacket: what arrived is no MQTT 5, or a packet is too long.
        """
        data = self._rest + data if self._rest else data
        self._rest = b""
        position = 0
        while True:
            found = _body(data, position)
            if found is None:
                self._rest = data[position:]
                return
            head, (start, position) = data[position], found
            try:
                yield _decode(head, data[start:position])
            except (IndexError, struct.error, UnicodeDecodeError) as error:
                raise BadPacket(f"a packet of kind {head >> 4} that is cut") from error


def _body(data: bytes, position: int) -> tuple[int, int] | None:
    """Start and end of the body of the packet at `position`; None: not whole yet."""
    length = shift = 0
    index = position + 1
    while True:
        if index >= len(data):
            return None
        byte = data[index]
        index += 1
        length |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
        if shift > 21:
            raise BadPacket("a length of more than four bytes")
    if length > MAX_PACKET_BYTES:
        raise BadPacket(f"a packet of {length} bytes")
    return None if index + length > len(data) else (index, index + length)


def _decode(head: int, body: bytes) -> Packet:
    kind = head >> 4
    if kind == 3:
        return _publish(head, body)
    if kind == 4:
        return Puback(_U16.unpack_from(body)[0], body[2] if len(body) > 2 else 0)
    if kind == 2:
        properties, _ = _properties(body, 2)
        return Connack(
            body[1],
            bool(body[0] & 1),
            properties.get(RECEIVE_MAXIMUM, 0xFFFF),
            properties.get(SERVER_KEEP_ALIVE),
        )
    if kind == 9:
        _, end = _properties(body, 2)
        return Suback(_U16.unpack_from(body)[0], body[end:])
    if kind == 13:
        return Pong()
    if kind == 14:
        return Disconnected(body[0] if body else 0)
    raise BadPacket(f"a packet of kind {kind}, which no device is sent")


def _publish(head: int, body: bytes) -> Publish:
    (length,) = _U16.unpack_from(body)
    position = 2 + length
    topic = body[2:position].decode()
    qos, mid = head >> 1 & 3, 0
    if qos > 1:
        raise BadPacket(f"a message at QoS {qos}")
    if qos:
        (mid,) = _U16.unpack_from(body, position)
        position += 2
    _, position = _properties(body, position)
    return Publish(topic, body[position:], mid, bool(head & 1))


def _properties(body: bytes, position: int) -> tuple[dict[int, int], int]:
    """The numbers among the properties at `position`, and where they end."""
    length, position = _read_variable(body, position)
    end = position + length
    if end > len(body):
        raise BadPacket("properties longer than their packet")
    numbers: dict[int, int] = {}
    while position < end:
        name, position = body[position], position + 1
        kind = _PROPERTY_KINDS.get(name)
        if kind == _BYTE:
            numbers[name], position = body[position], position + 1
        elif kind == _TWO:
            numbers[name], position = _U16.unpack_from(body, position)[0], position + 2
        elif kind == _FOUR:
            numbers[name], position = _U32.unpack_from(body, position)[0], position + 4
        elif kind == _VARIABLE:
            numbers[name], position = _read_variable(body, position)
        elif kind == _TEXT:
            position += 2 + _U16.unpack_from(body, position)[0]
        elif kind == _PAIR:
            for _ in range(2):
                position += 2 + _U16.unpack_from(body, position)[0]
        else:
            raise BadPacket(f"property {name:#x}, which MQTT 5 does not have")
    return numbers, end


def _read_variable(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, position
        shift += 7
        if shift > 21:
            raise BadPacket("a number of more than four bytes")
