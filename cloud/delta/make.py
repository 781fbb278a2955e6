"""Making a delta: the cheapest operation for every piece of a tensor, everything else beside it.

Every candidate is compressed quickly and the smallest one wins; what won is compressed once more,
as well as the time allows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import zstandard

from cloud.delta import transforms
from cloud.delta.layout import Piece, pair, pieces
from cloud.delta.moved import Move, moves
from edge_agent.wire import delta as form
from edge_agent.wire.delta import Kind

TILE_ELEMENTS: Final = 1 << 17
"""Elements of an operation: as many bytes a plane as a zstd block takes."""
BSDIFF_BYTES: Final = 2 << 20
"""Files without tensors up to this size are searched for moved bytes."""
MAX_MOVES: Final = 4096
"""More of them in one file tell that it was not moved but made anew."""
BSDIFF_SHARE: Final = 0.25
"""Of the time that is left, what the search in one file may take."""
LOOSE_BYTES: Final = 1 << 18
"""Bytes between tensors, and files without any, travel in the small stream up to this size."""
QUICK_LEVELS: Final = (1, 9)
BEST_LEVEL: Final = 19
NOISE_RATIO: Final = 0.98
FRAME_BYTES: Final = 1 << 12

Candidate = tuple[Kind, int, list[bytes]]
"""Kind, element width, parts of bulk."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What turns one raw bundle into another.

    Attributes:
        data: the container, see `edge_agent.wire.delta`.
        ram_needed: bytes a device needs to apply it, beside its baseline.
        seconds: what making it took.
        target_bytes: bytes of the target by the kind of operation that makes them.
    """

    data: bytes
    ram_needed: int
    seconds: float
    target_bytes: dict[str, int]


def make_delta(base: bytes, target: bytes, *, budget_s: float = 60.0) -> Delta | None:
    """A delta that makes `target` of `base`, both raw bundles.

    Args:
        budget_s: about how long it may take, in seconds; less time makes a larger delta.

    Returns:
        None when the bundles are such that no delta within the format's bounds describes the
        target, or the time was over before all of it had been looked at.
    """
    started_at = time.monotonic()
    script = _Script()
    for _ in _fill(script, base, target, started_at + budget_s):
        if time.monotonic() - started_at > budget_s:
            return None
    if len(script.ops) > form.MAX_OPS:
        return None
    bulk = _compress(script.bulk, budget_s - (time.monotonic() - started_at))
    packed_script = zstandard.compress(script.packed(), 19)
    packed_small = _compress_small(bytes(script.small), script.dictionary(base))
    header = form.HEADER.pack(
        form.MAGIC,
        len(target),
        len(base),
        len(script.ops),
        len(script.ranges),
        len(script.small),
        len(packed_script),
        len(packed_small),
    )
    by_kind = Counter[str]()
    for kind, _, length, _ in script.ops:
        by_kind[kind.name.lower()] += length
    return Delta(
        data=b"".join((header, packed_script, packed_small, bulk)),
        ram_needed=form.RAM_NEEDED_BYTES,
        seconds=time.monotonic() - started_at,
        target_bytes=dict(by_kind),
    )


@dataclass(slots=True)
class _Script:
    """A delta in the making."""

    ops: list[tuple[Kind, int, int, int]] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    small: bytearray = field(default_factory=bytearray)
    bulk: list[bytes] = field(default_factory=list)

    def add(self, candidate: Candidate, length: int, offset: int = 0) -> None:
        """One operation of any length; those that tell nothing but bytes are cut and joined."""
        kind, width, parts = candidate
        self.bulk += parts
        while length:
            room = form.MAX_OP_BYTES
            if self.ops and kind in (Kind.SMALL, Kind.DATA, Kind.COPY):
                last_kind, _, last_length, last_offset = self.ops[-1]
                follows = kind != Kind.COPY or last_offset + last_length == offset
                if last_kind == kind and follows and last_length < room:
                    step = min(length, room - last_length)
                    self.ops[-1] = (kind, 1, last_length + step, last_offset)
                    length, offset = length - step, offset + step
                    continue
            step = min(length, room)
            self.ops.append((kind, width, step, offset))
            length, offset = length - step, offset + step

    def packed(self) -> bytes:
        rows, at = [], 0
        for kind, width, length, offset in self.ops:
            reads = kind not in (Kind.SMALL, Kind.DATA, Kind.PLANES)
            rows.append(form.OP.pack(kind, width, length, offset - at if reads else 0))
            at = offset + length if reads else at
        rows += [form.RANGE.pack(offset, length) for offset, length in self.ranges]
        return b"".join(rows)

    def dictionary(self, base: bytes) -> bytes:
        return b"".join(base[offset : offset + length] for offset, length in self.ranges)


def _fill(script: _Script, base: bytes, target: bytes, end_at: float) -> Iterator[None]:
    """Write operations for all of `target`; yields now and then."""
    olds, news = pieces(base), pieces(target)
    paired = pair(olds, news)
    loose = {(old.file, old.whole): old for old in olds if old.tensor is None}
    room = form.MAX_SMALL_BYTES
    for old in olds:
        if old.tensor is None and old.length <= min(LOOSE_BYTES, room):
            if len(script.ranges) == form.MAX_RANGES:
                break
            script.ranges.append((old.start, old.length))
            room -= old.length
    room = form.MAX_SMALL_BYTES
    for new in news:
        data = target[new.start : new.start + new.length]
        if new.tensor is not None:
            yield from _fill_tensor(script, base, data, paired.get(new.start), new.tensor.width)
        elif new.length <= min(LOOSE_BYTES, room):
            room -= new.length
            script.small += data
            script.add((Kind.SMALL, 1, []), new.length)
        else:
            search_s = BSDIFF_SHARE * (end_at - time.monotonic())
            yield from _fill_loose(script, base, data, loose.get((new.file, new.whole)), search_s)
        yield


def _fill_tensor(
    script: _Script, base: bytes, data: bytes, old: Piece | None, width: int
) -> Iterator[None]:
    step = TILE_ELEMENTS * min(width, form.MAX_OP_BYTES // TILE_ELEMENTS)
    for at in range(0, len(data), step):
        new = data[at : at + step]
        if old is None:
            script.add(_smallest(_alone(new, width)), len(new))
        else:
            offset = old.start + at
            before = base[offset : offset + len(new)]
            candidates = [*_alone(new, width), *_against(before, new, width)]
            script.add(_smallest(candidates), len(new), offset)
        yield


def _fill_loose(
    script: _Script, base: bytes, data: bytes, old: Piece | None, search_s: float
) -> Iterator[None]:
    """A long piece without tensors."""
    before = b"" if old is None else base[old.start : old.start + old.length]
    steps: list[Move] = []
    if before and before != data and max(len(before), len(data)) <= BSDIFF_BYTES:
        steps = list(moves(before, data, budget_s=search_s))
    if old is None or not 0 < len(steps) <= MAX_MOVES:
        same = len(before) == len(data)
        yield from _fill_tensor(script, base, data, old if same else None, 1)
        return
    for step in steps:
        offset = old.start + step.offset
        for first in range(0, len(step.residual), form.MAX_OP_BYTES):
            residual = step.residual[first : first + form.MAX_OP_BYTES]
            candidate: Candidate = (Kind.COPY, 1, [])
            if any(residual):
                candidate = (Kind.ADD, 1, transforms.add(bytes(len(residual)), residual, 1))
            script.add(candidate, len(residual), offset + first)
        script.add((Kind.DATA, 1, [step.fresh]), len(step.fresh))
    yield


def _alone(new: bytes, width: int) -> list[Candidate]:
    found: list[Candidate] = [(Kind.DATA, 1, [new])]
    if width > 1:
        found.append((Kind.PLANES, width, transforms.planes(new, width)))
    return found


def _against(old: bytes, new: bytes, width: int) -> list[Candidate]:
    if old == new:
        return [(Kind.COPY, 1, [])]
    found: list[Candidate] = [
        (Kind.XOR, width, transforms.xor(old, new, width)),
        (Kind.ADD, width, transforms.add(old, new, width)),
    ]
    if width == 1:
        found.append((Kind.TERNARY, 1, transforms.ternary(old, new)))
    return found


def _smallest(candidates: list[Candidate]) -> Candidate:
    compressor = zstandard.ZstdCompressor(level=QUICK_LEVELS[0], write_content_size=False)
    return min(
        candidates,
        key=lambda candidate: sum(len(compressor.compress(part)) for part in candidate[2] if part),
    )


def _compress(parts: list[bytes], budget_s: float) -> bytes:
    """All parts as frames, each at the level that suits it best; small neighbours share one."""
    end_at = time.monotonic() + budget_s
    frames = []
    for data in _joined(parts):
        tried = [_frame(data, level) for level in QUICK_LEVELS]
        # the best level takes a hundred times as long, which noise is not worth
        if len(min(tried, key=len)) <= NOISE_RATIO * len(data) and time.monotonic() < end_at:
            tried.append(_frame(data, BEST_LEVEL))
        frames.append(min(tried, key=len))
    return b"".join(frames)


def _joined(parts: list[bytes]) -> Iterator[bytes]:
    """Parts of some length alone, for each has statistics of its own; shorter ones together."""
    waiting: list[bytes] = []
    for part in parts:
        if len(part) >= FRAME_BYTES:
            if waiting:
                yield b"".join(waiting)
                waiting = []
            yield part
        elif part:
            waiting.append(part)
    if waiting:
        yield b"".join(waiting)


def _frame(data: bytes, level: int) -> bytes:
    window_log = form.MAX_WINDOW_BYTES.bit_length() - 1
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(data),
        window_log=window_log,
        write_content_size=False,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def _compress_small(data: bytes, dictionary: bytes) -> bytes:
    """One frame that may refer to `dictionary` all the way through."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19,
        source_size=len(data),
        dict_size=len(dictionary),
        window_log=max(10, (len(data) + len(dictionary)).bit_length()),
        write_checksum=False,
    )
    prefix = (
        zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        if dictionary
        else None
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix)
    return compressor.compress(data)
