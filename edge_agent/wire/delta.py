"""The container of a delta: how a raw bundle is made from another raw bundle (docs/adr/0009).

    header    `HEADER`, little-endian
    script    one zstd frame: `op_count` rows of `OP`, then `range_count` rows of `RANGE`
    small     one zstd frame of `small_length` bytes; its dictionary is the base's ranges, joined
    bulk      zstd frames to the end: joined, what the operations read, in their order

Operations write the target front to back.  Their base offsets are written as the distance from
where the operation before stopped reading, so that they compress to nothing.
Only numbers and names are here; `edge_agent.update.delta` applies, `cloud.delta` makes.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

MAGIC: Final = b"SKDELTA1"
HEADER: Final = struct.Struct("<8sQQIIIII")
"""Magic, length of the target, of the base, op_count, range_count, small_length, then the lengths
that script and small have in the file."""
OP: Final = struct.Struct("<BBIq")
"""Kind, element width in bytes, length in the target in bytes, base distance in bytes."""
RANGE: Final = struct.Struct("<QI")
"""Offset and length in the base, in bytes."""

MAX_OPS: Final = 1 << 16
MAX_RANGES: Final = 1 << 13
MAX_OP_BYTES: Final = 1 << 19
MAX_SMALL_BYTES: Final = 1 << 20
MAX_WINDOW_BYTES: Final = 1 << 20
WIDTHS: Final = (1, 2, 4, 8)
RAM_NEEDED_BYTES: Final = 10 << 20
"""What applying any delta within these bounds takes at most, in bytes."""


class Kind(IntEnum):
    """What an operation does.

    Attributes:
        SMALL: the next bytes of the small stream.
        DATA: the next bytes of bulk.
        COPY: bytes of the base.
        XOR: base XOR bulk; bulk holds the bytes of all elements by significance, lowest first.
        ADD: base + residual, elements as unsigned integers; bulk as for XOR, of zigzag residuals.
        TERNARY: as ADD for single bytes, most of whose residuals are −1, 0 or 1; see
            `edge_agent.update.delta`.
        PLANES: bulk alone, as for XOR.
    """

    SMALL = 0
    DATA = 1
    COPY = 2
    XOR = 3
    ADD = 4
    TERNARY = 5
    PLANES = 6
