"""From encoded bytes to the raw bundle, bounded by what was signed.

The output never grows beyond the signed raw length and a zstd window never beyond
`MAX_WINDOW_BYTES`, so a decompression bomb costs neither disk nor memory.  A delta has bounds of
its own, see `edge_agent.update.delta`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from edge_agent.update import delta
from edge_agent.update.delta import Base
from edge_agent.update.errors import BadBundle
from edge_agent.wire.manifest import Encoding

MAX_WINDOW_BYTES: Final = 8 << 20
_BLOCK_BYTES: Final = 1 << 20


def choose(
    encodings: Sequence[Encoding], memory_bytes: int, bases: Container[str] = ()
) -> Encoding:
    """The shortest form this device can decode within `memory_bytes`.

    Args:
        bases: digests of the raw bundles that a delta may apply to.

    Raises:
        BadBundle: there is none.
    """
    usable = [
        form
        for form in encodings
        if form.ram_needed <= memory_bytes and (form.algo != "delta" or form.base_sha256 in bases)
    ]
    if not usable:
        raise BadBundle("no encoding fits this device's memory", "no_encoding")
    return min(usable, key=lambda form: form.length)


def decode(
    encoding: Encoding,
    source: Path,
    length: int,
    sha256: str,
    destination: Path,
    base: Base | None = None,
) -> None:
    """Write the raw bundle to `destination`, synced.

    Args:
        source: the encoded bytes.
        length: signed length of the raw bundle in bytes.
        sha256: signed digest of the raw bundle.
        base: what a delta applies to.

    Raises:
        BadBundle: longer or shorter than signed, another digest, or not decodable.
        OSError: the disk refused.
    """
    digest, written = hashlib.sha256(), 0
    try:
        with source.open("rb") as packed, destination.open("wb") as raw:
            for block in _blocks(encoding, packed, length, base):
                written += len(block)
                if written > length:
                    raise BadBundle(f"the bundle decodes to more than {length} bytes")
                digest.update(block)
                raw.write(block)
            raw.flush()
            os.fsync(raw.fileno())
    except zstandard.ZstdError as error:
        raise BadBundle(f"the bundle does not decode: {error}") from error
    if written != length or digest.hexdigest() != sha256:
        raise BadBundle("the decoded bundle is not the signed one")


def _blocks(
    encoding: Encoding, packed: BinaryIO, length: int, base: Base | None
) -> Iterator[bytes]:
    if encoding.algo == "delta":
        if base is None:
            raise BadBundle("there is nothing here that the delta applies to")
        yield from delta.apply(packed, base, length)
        return
    if encoding.algo == "raw":
        while block := packed.read(_BLOCK_BYTES):
            yield block
        return
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with decompressor.stream_reader(packed, closefd=False) as reader:
        while block := reader.read(_BLOCK_BYTES):
            yield block
