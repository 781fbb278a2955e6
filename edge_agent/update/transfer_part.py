"""The partial file of a download, and which chunks of it are good.

`SHA.part` holds the chunks where they belong, `SHA.map` one byte each.

Rules:
    * A chunk is written after its SHA-256 matched the signed list, and marked after it is written:
      a killed process loses at most the chunk in hand.
    * Both are synced every `SYNC_INTERVAL_S` seconds or `SYNC_INTERVAL_BYTES`, on a thread beside:
      a slow disk shall not hold up the line.
    * The map only says what is worth reading: at each start every marked chunk is verified again,
      so a map that survived a power cut without its data does no harm.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from edge_agent.update.errors import Interrupted
from edge_agent.update.ports import Clock
from edge_agent.wire.manifest import Encoding

DIGEST_BYTES: Final = 32
SYNC_INTERVAL_BYTES: Final = 32 << 20
SYNC_INTERVAL_S: Final = 2.0
BLOCK_BYTES: Final = 512
"""Unit of `st_blocks`: what a file with holes takes, whatever its length."""
SUFFIXES: Final = (".part", ".map")

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Part:
    """See the module.  A context: what is good when it ends is on the disk."""

    def __init__(
        self, directory: Path, encoding: Encoding, chunk_bytes: int, hashes: bytes, clock: Clock
    ) -> None:
        """
        Args:
            hashes: one 32-byte digest a chunk.
            clock: monotonic seconds.
        """
        self.path = directory / f"{encoding.sha256}.part"
        self._map_path = directory / f"{encoding.sha256}.map"
        self._length = encoding.length
        self._chunk_bytes = chunk_bytes
        self._hashes = hashes
        self._clock = clock
        self._unsynced_bytes = 0
        self._synced_at = clock()
        self.count = len(hashes) // DIGEST_BYTES
        self._good = bytearray(self.count)
        self._data = self._map = -1
        self._beside = ThreadPoolExecutor(1, "transfer-sync")  # idle until its first use
        self._syncing: Future[None] | None = None
        self.good_chunks = 0
        self.good_bytes = 0

    def __enter__(self) -> Part:
        self._data = os.open(self.path, _FLAGS, 0o600)
        try:
            self._map = os.open(self._map_path, _FLAGS, 0o600)
            os.ftruncate(self._data, self._length)
        except OSError:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.sync()
        finally:
            self._close()

    def verify(self, interrupted: Callable[[], bool]) -> None:
        """Count as good what an earlier download left and still matches.

        Raises:
            Interrupted: as asked.
        """
        claimed = os.pread(self._map, self.count + 1, 0)
        if len(claimed) != self.count:
            claimed = bytes(self.count)
            os.ftruncate(self._map, 0)
            os.ftruncate(self._map, self.count)
        for index in range(self.count):
            if claimed[index]:
                if interrupted():
                    raise Interrupted("the download was interrupted")
                if self.matches(index, self._read(index)):
                    self._count(index)
                else:
                    os.pwrite(self._map, b"\0", index)

    def is_good(self, index: int) -> bool:
        return self._good[index] == 1

    def missing(self) -> list[int]:
        """Chunks still to be fetched, in order."""
        return [index for index in range(self.count) if not self._good[index]]

    def matches(self, index: int, data: bytes) -> bool:
        """Whether `data` is chunk `index`; its length is looked at before it is hashed."""
        digest = self._hashes[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        return len(data) == self._chunk_length(index) and hashlib.sha256(data).digest() == digest

    def write(self, index: int, data: bytes) -> None:
        """Keep a chunk that matches."""
        _write_at(self._data, data, index * self._chunk_bytes)
        _write_at(self._map, b"\1", index)
        self._count(index)
        self._unsynced_bytes += len(data)
        full = self._unsynced_bytes >= SYNC_INTERVAL_BYTES
        if full or self._clock() - self._synced_at >= SYNC_INTERVAL_S:
            self._sync_beside(wait=full)

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()
        if self._unsynced_bytes:
            self._sync_both()
            self._unsynced_bytes = 0

    def _sync_beside(self, *, wait: bool) -> None:
        """Start to sync; if the last one is not done yet, `wait` for it or let it be."""
        if self._syncing is not None:
            if not wait and not self._syncing.done():
                return
            self._syncing.result()
        self._syncing = self._beside.submit(self._sync_both)
        self._unsynced_bytes, self._synced_at = 0, self._clock()

    def _sync_both(self) -> None:
        os.fdatasync(self._data)
        os.fdatasync(self._map)

    def _count(self, index: int) -> None:
        self._good[index] = 1
        self.good_chunks += 1
        self.good_bytes += self._chunk_length(index)

    def _chunk_length(self, index: int) -> int:
        return min(self._chunk_bytes, self._length - index * self._chunk_bytes)

    def _read(self, index: int) -> bytes:
        return os.pread(self._data, self._chunk_length(index), index * self._chunk_bytes)

    def _close(self) -> None:
        self._beside.shutdown()
        for descriptor in (self._data, self._map):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._map = -1


def kept_bytes(directory: Path, encoding: Encoding) -> int:
    """What an earlier download of `encoding` takes on the disk already, in bytes."""
    try:
        kept = (directory / f"{encoding.sha256}.part").lstat().st_blocks * BLOCK_BYTES
    except FileNotFoundError:
        return 0
    return min(kept, encoding.length)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    """All of `data`: a disk that fills up takes a part first, and refuses the rest."""
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)
