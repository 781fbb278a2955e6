"""Getting a bundle's bytes over a lossy line, one verified chunk at a time.

Rules:
    * A chunk is written only after its SHA-256 matched the signed list; a wrong, lost or doubled
      chunk costs that chunk alone, and a retry cap ends it (`chunk_corrupt`, `chunk_missing`).
    * What came is kept: `SHA.part` holds the chunks, `SHA.map` one byte each.  Data is synced
      before the map that vouches for it, and every chunk is verified again at the next start.
    * The window halves on time-outs and grows by one a round without; no progress for
      `stall_timeout_s` raises `TransferStalled`.
Trusts nobody about lengths: the caller passes them from signed metadata.
"""

from __future__ import annotations

import hashlib
import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edge_agent.update.errors import Interrupted, TransferFailed, TransferStalled
from edge_agent.update.ports import ChunkPort, Clock
from edge_agent.wire.manifest import Encoding
from edge_agent.wire.messages import ChunkReply, ChunkRequest

DIGEST_BYTES: Final = 32
SYNC_INTERVAL_BYTES: Final = 4 << 20
_SPAN: Final = 64  # chunks one request can name
_TICK_S: Final = 0.1


def _never() -> bool:
    return False


class Transfer:
    """Downloads encoded bundles into one directory.  For one thread."""

    def __init__(
        self,
        port: ChunkPort,
        directory: Path,
        *,
        window: int = 16,
        retry_cap: int = 5,
        reply_timeout_s: float = 2.0,
        stall_timeout_s: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            directory: where partial and finished files lie; created when missing.
            window: most chunks in flight.
            retry_cap: corrupt replies of one chunk before giving up.
            reply_timeout_s: least time before a chunk is asked for again.
            stall_timeout_s: longest time without a good chunk.
            clock: monotonic seconds.
        """
        self._port = port
        self._directory = directory
        self._window = window
        self._retry_cap = retry_cap
        self._reply_timeout_s = reply_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock

    def download(
        self,
        encoding: Encoding,
        chunk_bytes: int,
        chunk_hashes: bytes,
        *,
        interrupted: Callable[[], bool] = _never,
    ) -> Path:
        """Fetch the encoded bytes; resumes what an earlier call left.

        Args:
            chunk_bytes: length of every chunk but the last.
            chunk_hashes: 32-byte SHA-256 digests in order, already checked against
                `encoding.chunks_sha256`.
            interrupted: asked often; True ends the download with `Interrupted`.

        Returns:
            Path of the complete, verified file.

        Raises:
            TransferFailed: `chunk_corrupt`, `chunk_missing`, `transfer_denied`, `chunk_list_wrong`.
            TransferStalled: too slow; call again later to resume.
            Interrupted: as asked.
            OSError: the disk refused.
        """
        count = -(-encoding.length // chunk_bytes)
        if len(chunk_hashes) != count * DIGEST_BYTES:
            raise TransferFailed("the chunk list has a wrong length", "chunk_list_wrong")
        self._directory.mkdir(parents=True, exist_ok=True)
        with _Part(self._directory, encoding, chunk_bytes, chunk_hashes) as part:
            _Run(self, part, encoding.sha256, chunk_bytes, interrupted).finish()
        return part.path

    def discard(self, encoding: Encoding) -> None:
        """Remove what is kept of `encoding`."""
        for suffix in ("part", "map"):
            (self._directory / f"{encoding.sha256}.{suffix}").unlink(missing_ok=True)

    def keep_only(self, sha256s: set[str]) -> None:
        """Remove partial files of any other encoding."""
        for path in self._directory.glob("*"):
            if path.suffix in (".part", ".map") and path.stem not in sha256s:
                path.unlink(missing_ok=True)


class _Part:
    """The partial file, and which chunks of it are good."""

    def __init__(
        self, directory: Path, encoding: Encoding, chunk_bytes: int, hashes: bytes
    ) -> None:
        self.path = directory / f"{encoding.sha256}.part"
        self._map_path = directory / f"{encoding.sha256}.map"
        self._length = encoding.length
        self._chunk_bytes = chunk_bytes
        self._hashes = hashes
        self._unsynced_bytes = 0
        self.count = len(hashes) // DIGEST_BYTES
        self.good = bytearray(self.count)
        self._descriptor = -1

    def __enter__(self) -> _Part:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, self._length)
        claimed = self._map_path.read_bytes() if self._map_path.exists() else b""
        if len(claimed) == self.count:
            for index in range(self.count):
                if claimed[index] and self.matches(index, self._read(index)):
                    self.good[index] = 1
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def matches(self, index: int, data: bytes) -> bool:
        digest = self._hashes[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        return len(data) == self._chunk_length(index) and hashlib.sha256(data).digest() == digest

    def write(self, index: int, data: bytes) -> None:
        os.pwrite(self._descriptor, data, index * self._chunk_bytes)
        self.good[index] = 1
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= SYNC_INTERVAL_BYTES:
            self.sync()

    def sync(self) -> None:
        """Data first, then the map that vouches for it."""
        if not self._unsynced_bytes:
            return
        os.fdatasync(self._descriptor)
        temporary = self._map_path.with_suffix(".map.new")
        with temporary.open("wb") as file:
            file.write(self.good)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._map_path)
        self._unsynced_bytes = 0

    def missing(self) -> Iterator[int]:
        return (index for index in range(self.count) if not self.good[index])

    def _chunk_length(self, index: int) -> int:
        return min(self._chunk_bytes, self._length - index * self._chunk_bytes)

    def _read(self, index: int) -> bytes:
        return os.pread(self._descriptor, self._chunk_length(index), index * self._chunk_bytes)


class _Run:
    """One download: the chunks in flight, the window, the retries."""

    def __init__(
        self,
        transfer: Transfer,
        part: _Part,
        sha256: str,
        chunk_bytes: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self._transfer = transfer
        self._part = part
        self._sha256 = sha256
        self._chunk_bytes = chunk_bytes
        self._interrupted = interrupted
        self._clock = transfer._clock
        self._window = float(transfer._window)
        self._sent_at: dict[int, float] = {}
        self._corrupt: dict[int, int] = {}
        self._round_trip_s = 0.0
        self._progress_at = self._clock()

    def finish(self) -> None:
        while sum(self._part.good) < self._part.count:
            if self._interrupted():
                raise Interrupted("the download was interrupted")
            self._expire()
            self._ask()
            self._receive()
            if self._clock() - self._progress_at > self._transfer._stall_timeout_s:
                raise TransferStalled(
                    f"no good chunk for {self._transfer._stall_timeout_s:g} s, "
                    f"{sum(self._part.good)} of {self._part.count} are here"
                )

    def _expire(self) -> None:
        """Forget requests that were not answered in time; they are asked for again."""
        deadline_s = max(self._transfer._reply_timeout_s, 4 * self._round_trip_s)
        now = self._clock()
        late = [index for index, sent in self._sent_at.items() if now - sent > deadline_s]
        for index in late:
            del self._sent_at[index]
        if late:
            self._window = max(1.0, self._window / 2)

    def _ask(self) -> None:
        free = int(self._window) - len(self._sent_at)
        # Half a window at a time: fewer, fuller requests.
        if free <= 0 or (self._sent_at and free < self._window / 2):
            return
        wanted: list[int] = []
        for index in self._part.missing():
            if index not in self._sent_at:
                wanted.append(index)
                if len(wanted) == free:
                    break
        while wanted:
            first = wanted[0]
            batch = [index for index in wanted if index < first + _SPAN]
            wanted = wanted[len(batch) :]
            bitmap = sum(1 << (index - first) for index in batch)
            now = self._clock()
            self._sent_at.update(dict.fromkeys(batch, now))
            self._transfer._port.request(
                ChunkRequest(
                    sha256=self._sha256,
                    first=first,
                    bitmap=f"{bitmap:x}",
                    chunk_bytes=self._chunk_bytes,
                )
            )

    def _receive(self) -> None:
        replies = self._transfer._port.replies
        try:
            reply, data = replies.get(timeout=_TICK_S)
            while True:
                self._take(reply, bytes(data))
                reply, data = replies.get_nowait()
        except queue.Empty:
            return

    def _take(self, reply: ChunkReply, data: bytes) -> None:
        index = reply.index
        if reply.sha256 != self._sha256 or index not in self._sent_at:
            return  # of an earlier download, doubled, or never asked for
        sent_at = self._sent_at.pop(index)
        if reply.status == "denied":
            raise TransferFailed("the control plane denies this bundle", "transfer_denied")
        if reply.status == "not_found":
            raise TransferFailed("the control plane has no such bundle", "chunk_missing")
        if not self._part.matches(index, data):
            self._corrupt[index] = self._corrupt.get(index, 0) + 1
            if self._corrupt[index] > self._transfer._retry_cap:
                raise TransferFailed(
                    f"chunk {index} came corrupt {self._corrupt[index]} times", "chunk_corrupt"
                )
            return
        self._part.write(index, data)
        self._progress_at = self._clock()
        self._round_trip_s += 0.2 * (self._progress_at - sent_at - self._round_trip_s)
        self._window = min(float(self._transfer._window), self._window + 1 / self._window)
