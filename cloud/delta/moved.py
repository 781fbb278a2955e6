"""Bytes that moved within a file without tensors, as bsdiff finds them.

Source: Colin Percival, "Naive differences of executable code", 2003, and the file format BSDIFF40:
magic, then the lengths of packed control, of packed differences and of the target, 8 bytes each,
then control, differences and fresh bytes, each packed by bzip2.  Its integers have their sign in
the highest bit.
"""

from __future__ import annotations

import bz2
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_HEADER_BYTES: Final = 32
_SIGN: Final = 1 << 63
_SEARCH: Final = (
    "import bsdiff4, sys; data = sys.stdin.buffer.read(); size = int(sys.argv[1]); "
    "sys.stdout.buffer.write(bsdiff4.diff(data[:size], data[size:]))"
)


@dataclass(frozen=True, slots=True)
class Move:
    """One step of making a target: first what is similar to the base, then what is fresh.

    Attributes:
        offset: in the base, of what is similar.
        residual: target − base, modulo 256, of what is similar.
        fresh: bytes that the base does not have.
    """

    offset: int
    residual: bytes
    fresh: bytes


def moves(base: bytes, target: bytes, *, budget_s: float) -> Iterator[Move]:
    """Steps that make `target` of `base`, front to back; none when the search came to no end.

    Takes some seconds a MiB and 17 bytes of memory a byte of the base, but minutes where bytes
    repeat for long: the search is a process of its own, which can be ended.

    Args:
        budget_s: how long the search may take, in seconds.
    """
    try:
        patch = subprocess.run(
            [sys.executable, "-I", "-c", _SEARCH, str(len(base))],
            input=base + target,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=max(budget_s, 0.0),
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return
    packed_control, packed_residual = struct.unpack_from("<QQ", patch, 8)
    middle = _HEADER_BYTES + packed_control
    control = bz2.decompress(patch[_HEADER_BYTES:middle])
    residual = bz2.decompress(patch[middle : middle + packed_residual])
    fresh = bz2.decompress(patch[middle + packed_residual :])
    at = used = taken = 0
    for fields in struct.iter_unpack("<QQQ", control):
        similar, new, seek = map(_signed, fields)
        yield Move(at, residual[used : used + similar], fresh[taken : taken + new])
        at, used, taken = at + similar + seek, used + similar, taken + new


def _signed(field: int) -> int:
    return field if field < _SIGN else _SIGN - field
