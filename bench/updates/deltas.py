"""Bytes of an update: ours beside other tools, on the same two raw bundles.

Every tool is given both bundles whole and its strongest ordinary setting, except zstd, which sees
the new one alone: it is what a device without the old version pays.  Ours is applied again, and
what comes out compared.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import bsdiff4
import hdiffpatch
import zstandard

from bench.loads.errors import BenchError
from bench.updates.bundles import Pair
from cloud.delta import make_delta
from edge_agent.update import delta as device
from edge_agent.update.errors import BadBundle

OURS: Final = "ours"
ZSTD_LEVEL: Final = 19
BUDGET_S: Final = 120.0


@dataclass(frozen=True)
class Cost:
    """What one tool makes of a pair.

    Attributes:
        length: bytes; `None` where the tool made nothing.
        seconds: of making them.
    """

    length: int | None
    seconds: float


@dataclass(frozen=True)
class Compared:
    """One pair and every tool's answer.

    Attributes:
        raw: bytes of the new bundle.
    """

    name: str
    kind: str
    raw: int
    moved: float
    note: str
    costs: dict[str, Cost]

    def ratio(self, tool: str) -> float | None:
        length = self.costs[tool].length
        return None if length is None else length / self.raw


def compare(pair: Pair) -> Compared:
    """Let every tool make its bytes.

    Raises:
        BenchError: ours does not give the new bundle back.
    """
    costs = {name: _timed(make, pair) for name, make in _TOOLS.items()}
    return Compared(pair.name, pair.kind, len(pair.new), pair.moved, pair.note, costs)


def require_same(pair: Pair, delta: bytes) -> None:
    """Apply `delta` to the old bundle as a device does.

    Raises:
        BenchError: what comes out is not the new one.
    """
    try:
        blocks = device.apply(io.BytesIO(delta), MemoryBase(pair.old), len(pair.new))
        again = b"".join(blocks)
    except BadBundle as error:
        raise BenchError(f"{pair.name} {pair.kind}: {error}") from error
    if again != pair.new:
        raise BenchError(f"{pair.name} {pair.kind}: the delta does not give the new bundle")


class MemoryBase:
    """A raw bundle in memory as what a delta is applied to."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def length(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def _timed(make: Callable[[bytes, bytes], bytes | None], pair: Pair) -> Cost:
    started_at = time.monotonic()
    made = make(pair.old, pair.new)
    seconds = time.monotonic() - started_at
    if made is not None and make is _ours:
        require_same(pair, made)
    return Cost(None if made is None else len(made), seconds)


def _ours(old: bytes, new: bytes) -> bytes | None:
    delta = make_delta(old, new, budget_s=BUDGET_S)
    return None if delta is None else delta.data


def _zstd(old: bytes, new: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(new)


def _bsdiff(old: bytes, new: bytes) -> bytes:
    patch: bytes = bsdiff4.diff(old, new)
    return patch


def _hdiffpatch(old: bytes, new: bytes) -> bytes:
    made = [
        hdiffpatch.diff(old, new, compression=kind)
        for kind in (hdiffpatch.COMPRESSION_ZSTD, hdiffpatch.COMPRESSION_LZMA2)
    ]
    return min(made, key=len)


_TOOLS: Final[dict[str, Callable[[bytes, bytes], bytes | None]]] = {
    OURS: _ours,
    "zstd -19": _zstd,
    "bsdiff4": _bsdiff,
    "HDiffPatch": _hdiffpatch,
}

ALTERNATIVES: Final = tuple(name for name in _TOOLS if name != OURS)
