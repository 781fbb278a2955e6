"""Applying a delta in a stream: `base` and the delta's bytes in, blocks of the raw bundle out.

Rules:
    * Nothing is written beyond the signed length, and nothing read beyond the base: the script is
      checked as a whole before the first block.
    * Memory does not grow with the bundle: a block is at most `MAX_OP_BYTES` of the target, a zstd
      window at most `MAX_WINDOW_BYTES`, and a frame's own claim about its size is not believed.
    * Whatever is wrong with the delta is a `BadBundle`; the caller checks the digest of the result.

Ternary: the residuals −1, 0, 1 are digits 0, 1, 2 and packed five a byte, the first one most
significant, which costs an entropy coder far less than the bit a byte that Huffman codes begin at.
A larger residual is written as ±1; by how much it is larger follows for every residual that is not
0: as 0, 1 or "2 and more" five a byte in the same way, then what is beyond 2 in a byte each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO, Final, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from edge_agent.update.errors import BadBundle
from edge_agent.wire import delta as form
from edge_agent.wire.delta import Kind

Bytes = npt.NDArray[np.uint8]
Op = tuple[int, int, int, int]
"""Kind, width, length in the target, offset in the base."""

_READ_BYTES: Final = 1 << 16
_READS_BASE: Final = frozenset({Kind.COPY, Kind.XOR, Kind.ADD, Kind.TERNARY})
_DIGITS: Final = np.array(
    [[code // 3**place % 3 for place in (4, 3, 2, 1, 0)] for code in range(3**5)], np.uint8
)


class Base(Protocol):
    """The raw bundle that a delta applies to."""

    @property
    def length(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            BadBundle: they cannot be read.
        """
        ...


def apply(source: BinaryIO, base: Base, length: int) -> Iterator[bytes]:
    """The raw bundle, in blocks of at most `MAX_OP_BYTES`.

    Args:
        source: the delta, at its beginning.
        length: signed length of the raw bundle in bytes; all blocks together have it.

    Raises:
        BadBundle: the delta is not one of this base and length, or is damaged.
        OSError: the delta cannot be read.
    """
    try:
        yield from _apply(source, base, length)
    except zstandard.ZstdError as error:
        raise BadBundle(f"the delta does not decode: {error}") from error


def _apply(source: BinaryIO, base: Base, length: int) -> Iterator[bytes]:
    header = _exactly(source, form.HEADER.size)
    (
        magic,
        target_length,
        base_length,
        op_count,
        range_count,
        small_length,
        script_packed,
        packed,
    ) = form.HEADER.unpack(header)
    if magic != form.MAGIC:
        raise BadBundle("not a delta of a known version")
    if (target_length, base_length) != (length, base.length):
        raise BadBundle("the delta is of other lengths than were signed")
    if op_count > form.MAX_OPS or range_count > form.MAX_RANGES:
        raise BadBundle("the delta has too long a script")
    if small_length > form.MAX_SMALL_BYTES or max(script_packed, packed) > 2 * form.MAX_SMALL_BYTES:
        raise BadBundle("the delta's small part is too large")
    ops_bytes = op_count * form.OP.size
    script = _inflate(_exactly(source, script_packed), ops_bytes + range_count * form.RANGE.size)
    ops, ranges = script[:ops_bytes], script[ops_bytes:]
    _check(ops, base.length, length, small_length)
    small = _inflate(_exactly(source, packed), small_length, _dictionary(ranges, base))
    yield from _run(ops, small, base, source)


def _run(ops: bytes, small: bytes, base: Base, source: BinaryIO) -> Iterator[bytes]:
    used = 0
    bulk = zstandard.ZstdDecompressor(max_window_size=form.MAX_WINDOW_BYTES).stream_reader(
        source, read_size=_READ_BYTES, read_across_frames=True, closefd=False
    )
    with closing(bulk):
        for kind, width, length, offset in _operations(ops):
            if kind == Kind.SMALL:
                yield small[used : used + length]
                used += length
            elif kind == Kind.DATA:
                yield _bulk(bulk, length)
            elif kind == Kind.COPY:
                yield base.read(offset, length)
            elif kind == Kind.PLANES:
                yield _planes(bulk, width, length).tobytes()
            else:
                old = np.frombuffer(base.read(offset, length), np.uint8)
                yield _transformed(kind, width, old, bulk)
        if bulk.read(1):
            raise BadBundle("the delta is longer than its script")


def _transformed(
    kind: int, width: int, old: Bytes, bulk: zstandard.ZstdDecompressionReader
) -> bytes:
    if kind == Kind.TERNARY:
        stepped: Bytes = old + _ternary(bulk, len(old))
        return stepped.tobytes()
    new = _planes(bulk, width, len(old))
    elements = old.view(new.dtype)
    if kind == Kind.XOR:
        mixed: npt.NDArray[np.unsignedinteger] = elements ^ new
        return mixed.tobytes()
    one = new.dtype.type(1)
    residual = (new >> one) ^ np.negative(new & one)  # out of zigzag, modulo 2**(8 * width)
    added: npt.NDArray[np.unsignedinteger] = elements + residual
    return added.tobytes()


def _planes(
    bulk: zstandard.ZstdDecompressionReader, width: int, length: int
) -> npt.NDArray[np.unsignedinteger]:
    """Elements whose bytes stand in bulk by significance, lowest first."""
    planes = np.frombuffer(_bulk(bulk, length), np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).view(np.dtype(f"<u{width}"))[:, 0]


def _ternary(bulk: zstandard.ZstdDecompressionReader, count: int) -> Bytes:
    """`count` residuals modulo 256."""
    residual = _digits(bulk, count)
    residual -= np.uint8(1)
    moved = residual != 0
    more = _digits(bulk, int(np.count_nonzero(moved)))
    far = more == 2
    beyond = np.frombuffer(_bulk(bulk, int(np.count_nonzero(far))), np.uint8)
    more[far] += beyond
    sign = residual[moved]  # 1 or 255
    residual[moved] = sign + more * sign
    return residual


def _digits(bulk: zstandard.ZstdDecompressionReader, count: int) -> Bytes:
    """`count` numbers from 0 to 2."""
    codes = np.frombuffer(_bulk(bulk, -(-count // 5)), np.uint8)
    if codes.size and int(codes.max()) >= len(_DIGITS):
        raise BadBundle("the delta holds what no delta has")
    return _DIGITS[codes].reshape(-1)[:count]


def _operations(ops: bytes) -> Iterator[Op]:
    """The script with offsets in the base counted from its beginning."""
    at = 0
    for kind, width, length, distance in form.OP.iter_unpack(ops):
        offset = at + distance if kind in _READS_BASE else 0
        if kind in _READS_BASE:
            at = offset + length
        yield kind, width, length, offset


def _check(ops: bytes, base_length: int, length: int, small_length: int) -> None:
    """Refuse a script that would read or write where it must not."""
    written = small = 0
    for kind, width, step, offset in _operations(ops):
        written += step
        small += step if kind == Kind.SMALL else 0
        if kind > max(Kind) or not 0 < step <= form.MAX_OP_BYTES or written > length:
            raise BadBundle("the delta's script is wrong")
        if kind in _READS_BASE and not 0 <= offset <= base_length - step:
            raise BadBundle("the delta reads beyond its base")
        if width not in form.WIDTHS or step % width or (kind == Kind.TERNARY and width != 1):
            raise BadBundle("the delta has elements of a wrong width")
    if written != length or small != small_length:
        raise BadBundle("the delta's script does not add up")


def _dictionary(ranges: bytes, base: Base) -> bytes:
    parts, total = [], 0
    for offset, length in form.RANGE.iter_unpack(ranges):
        total += length
        if offset + length > base.length or total > form.MAX_SMALL_BYTES:
            raise BadBundle("the delta reads beyond its base")
        parts.append(base.read(offset, length))
    return b"".join(parts)


def _inflate(packed: bytes, length: int, dictionary: bytes = b"") -> bytes:
    """The one frame in `packed`, which must hold exactly `length` bytes."""
    prefix = (
        zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        if dictionary
        else None
    )
    decompressor = zstandard.ZstdDecompressor(
        dict_data=prefix, max_window_size=2 * form.MAX_SMALL_BYTES
    )
    with decompressor.stream_reader(packed) as reader:
        data = _bulk(reader, length)
        if reader.read(1):
            raise BadBundle("the delta is longer than its script")
    return data


def _bulk(reader: zstandard.ZstdDecompressionReader, length: int) -> bytes:
    data = reader.read(length) if length else b""
    if len(data) != length:
        raise BadBundle("the delta ends too early")
    return data


def _exactly(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) != length:
        raise BadBundle("the delta ends too early")
    return data
