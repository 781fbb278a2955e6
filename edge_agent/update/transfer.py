"""Getting a bundle's bytes over a lossy line, one verified chunk at a time.

Rules:
    * A chunk is written only after its SHA-256 matched the signed list; a wrong, lost or doubled
      chunk costs that chunk alone, and a retry cap ends it (`chunk_corrupt`).
    * "Not found" and "denied" are what the control plane says in words, and end it at once;
      silence never does, it is waited out until the deadline.
    * What came is kept (`transfer_part`).  A chunk that comes late counts as well.
    * How many are asked for at a time, how fast, and how slow is too slow: `transfer_pace`.
    * An interruption is noticed within a tick, whatever arrives meanwhile.
Trusts nobody about lengths: the caller passes them from signed metadata.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.update.errors import Interrupted, TransferFailed, TransferStalled
from edge_agent.update.ports import ChunkPort, Clock
from edge_agent.update.transfer_pace import Bucket, Deadline, Flight
from edge_agent.update.transfer_part import DIGEST_BYTES, SUFFIXES, Part
from edge_agent.wire.manifest import Encoding
from edge_agent.wire.messages import ChunkReply, ChunkRequest

_SPAN: Final = 64  # chunks one request can name
_TICK_S: Final = 0.1
_BATCH: Final = 64  # replies taken before the clock and the caller are asked again


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard a download may press on the line.

    Attributes:
        window_chunks: most chunks asked for and not yet here.
        max_kib_s: most KiB a second; 0 is no limit.
        min_kib_s: KiB a second below which a download counts as stalled; 0 asks for any progress.
    """

    window_chunks: int = 16
    max_kib_s: float = 0.0
    min_kib_s: float = 0.0


class Transfer:
    """Downloads encoded bundles into one directory.  For one thread; `progress` for any."""

    def __init__(
        self,
        port: ChunkPort,
        directory: Path,
        *,
        pace: Pace | None = None,
        retry_cap: int = 5,
        reply_timeout_s: float = 2.0,
        stall_timeout_s: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            directory: where partial and finished files lie; created when missing.
            retry_cap: corrupt replies of one chunk before giving up.
            reply_timeout_s: silence after which chunks are asked for again, at least.
            stall_timeout_s: longest time without a good chunk, and over which the least rate is
                measured; longer where the pace leaves time for less than two chunks.
            clock: monotonic seconds.
        """
        self._port = port
        self._directory = directory
        self._pace = pace or Pace()
        self._retry_cap = retry_cap
        self._reply_timeout_s = reply_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self.progress: tuple[int, int] | None = None
        """Good bytes and all bytes of the download that runs; None when none does."""

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
        try:
            with Part(self._directory, encoding, chunk_bytes, chunk_hashes, self._clock) as part:
                part.verify(interrupted)
                _Run(self, part, encoding, chunk_bytes, interrupted).finish()
        finally:
            self.progress = None
            self._forget_replies()
        return part.path

    def discard(self, encoding: Encoding) -> None:
        """Remove what is kept of `encoding`."""
        for suffix in SUFFIXES:
            (self._directory / f"{encoding.sha256}{suffix}").unlink(missing_ok=True)

    def keep_only(self, sha256s: set[str]) -> None:
        """Remove partial files of any other encoding."""
        for path in self._directory.glob("*"):
            if path.suffix in SUFFIXES and path.stem not in sha256s:
                path.unlink(missing_ok=True)

    def _forget_replies(self) -> None:
        """Free what came too late; bounded, because it may still be coming."""
        try:
            for _ in range(self._port.replies.qsize()):
                self._port.replies.get_nowait()
        except queue.Empty:
            return


class _Run:
    """One download: what is missing, in flight, and came corrupt."""

    def __init__(
        self,
        transfer: Transfer,
        part: Part,
        encoding: Encoding,
        chunk_bytes: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self._transfer = transfer
        self._part = part
        self._encoding = encoding
        self._chunk_bytes = chunk_bytes
        self._interrupted = interrupted
        self._clock = transfer._clock
        pace, now = transfer._pace, transfer._clock()
        max_bytes_s, least_bytes_s = pace.max_kib_s * 1024, pace.min_kib_s * 1024
        if max_bytes_s:  # what we forbid ourselves is not the line's fault
            least_bytes_s = min(least_bytes_s, max_bytes_s / 2)
        slowest_bytes_s = min((rate for rate in (max_bytes_s, least_bytes_s) if rate), default=0.0)
        window_s = transfer._stall_timeout_s
        if slowest_bytes_s:
            window_s = max(window_s, 2 * chunk_bytes / slowest_bytes_s)
        self._flight = Flight(pace.window_chunks, transfer._reply_timeout_s, now)
        self._bucket = Bucket(max_bytes_s, chunk_bytes, now)
        self._deadline = Deadline(window_s, least_bytes_s * window_s, now)
        self._least_bytes_s = least_bytes_s
        self._wanted = deque(part.missing())
        self._corrupt: dict[int, int] = {}
        self._asked_for: set[int] = set()  # of the replies in hand, those that were in flight

    def finish(self) -> None:
        found, started_at = self._part.good_bytes, self._clock()
        while self._part.good_chunks < self._part.count:
            self._transfer.progress = (self._part.good_bytes, self._encoding.length)
            if self._interrupted():
                self._keep_what_came()
                raise Interrupted("the download was interrupted")
            now = self._clock()
            self._wanted.extendleft(reversed(self._flight.lost(now)))
            pause_s = self._ask(now)
            for reply, data in self._replies(pause_s):
                self._take(reply, data)
            if self._deadline.late(now := self._clock()):
                came = self._part.good_bytes - found
                enough = max(1.0, self._least_bytes_s * (now - started_at))
                raise TransferStalled(self._stalled(), advanced=came >= enough)

    def _stalled(self) -> str:
        part, deadline = self._part, self._deadline
        asked = f", {deadline.least_bytes:.0f} are asked for" if deadline.least_bytes else ""
        return (
            f"{deadline.bytes} good bytes came in {deadline.window_s:g} s{asked}; "
            f"{part.good_chunks} of {part.count} chunks are here"
        )

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    def _ask(self, now: float) -> float:
        """Ask for what may be asked for; returns how long to wait for a reply, in seconds."""
        free = self._flight.free
        # A quarter of the window at a time: fewer, fuller requests.
        if free <= 0 or (len(self._flight) and free < self._flight.window / 4):
            return _TICK_S
        allowed = self._bucket.chunks(now)
        if allowed is not None:
            free = min(free, allowed)
        while free > 0 and (batch := self._next(free)):
            if not self._request(batch):  # no line; nothing is under way
                self._wanted.extendleft(reversed(batch))
                return _TICK_S
            self._flight.ask(batch, now)
            self._bucket.take(len(batch))
            free -= len(batch)
        if allowed is not None and self._wanted and self._flight.free > 0:
            return min(_TICK_S, self._bucket.wait_s())
        return _TICK_S

    def _next(self, most: int) -> list[int]:
        """The next chunks to ask for that fit into one request."""
        batch: list[int] = []
        while self._wanted and len(batch) < most:
            index = self._wanted[0]
            if batch and not batch[0] <= index < batch[0] + _SPAN:
                break
            self._wanted.popleft()
            if not self._part.is_good(index):  # it may have come late
                batch.append(index)
        return batch

    def _request(self, batch: list[int]) -> bool:
        request = ChunkRequest(
            sha256=self._encoding.sha256,
            first=batch[0],
            bitmap=f"{sum(1 << (index - batch[0]) for index in batch):x}",
            chunk_bytes=self._chunk_bytes,
        )
        return self._transfer._port.request(request) is not False

    def _keep_what_came(self) -> None:
        """Keep the replies that are here already: they are paid for."""
        replies = self._transfer._port.replies
        for _ in range(replies.qsize()):
            reply, data = replies.get_nowait()
            index, known = reply.index, range(self._part.count)
            ours = reply.sha256 == self._encoding.sha256 and index in known
            if ours and not self._part.is_good(index) and self._part.matches(index, data):
                self._part.write(index, data)

    # ── receiving ────────────────────────────────────────────────────────────────────────────────

    def _replies(self, wait_s: float) -> list[tuple[ChunkReply, bytes]]:
        """What has come for this download.

        The next chunks are asked for before these are hashed and written, so the line does not
        wait for the disk.
        """
        replies = self._transfer._port.replies
        taken: list[tuple[ChunkReply, bytes]] = []
        try:
            taken.append(replies.get(timeout=wait_s) if wait_s > 0 else replies.get_nowait())
            while len(taken) < _BATCH:
                taken.append(replies.get_nowait())
        except queue.Empty:
            pass
        now = self._clock()
        known = range(self._part.count)
        ours = [
            item
            for item in taken
            if item[0].sha256 == self._encoding.sha256 and item[0].index in known
        ]
        self._asked_for = {reply.index for reply, _ in ours if reply.index in self._flight}
        for reply, _ in ours:
            self._flight.arrive(reply.index, now)
        if ours:
            self._ask(now)
        return ours

    def _take(self, reply: ChunkReply, data: bytes) -> None:
        index = reply.index
        if self._part.is_good(index):
            return  # doubled
        if reply.status == "ok" and self._part.matches(index, data):
            self._part.write(index, data)
            self._deadline.add(len(data), self._clock())
            return
        if index not in self._asked_for:
            return  # nobody asked for this nonsense
        self._asked_for.remove(index)
        if reply.status == "denied":
            raise TransferFailed("the control plane denies this bundle", "transfer_denied")
        if reply.status == "not_found":
            raise TransferFailed("the control plane has no such bundle", "chunk_missing")
        self._corrupt[index] = self._corrupt.get(index, 0) + 1
        if self._corrupt[index] > self._transfer._retry_cap:
            raise TransferFailed(
                f"chunk {index} came corrupt {self._corrupt[index]} times", "chunk_corrupt"
            )
        self._wanted.appendleft(index)
