"""When to ask for which chunk, and when to give up: decisions alone, no clock and no line.

`Flight` holds what is asked for and not yet here:
    * The window grows by one a chunk up to the threshold, then by one a round; a lost chunk halves
      it once a round, silence brings it down to one.
    * It does not grow while chunks wait on the line for longer than `QUEUE_S`, so that a slow line
      keeps answering other messages and a cancelled download leaves little under way.
    * A chunk is lost when `PASSED` later ones came before it and its time is over, or when nothing
      at all came for the time-out.  While chunks come in order none is asked for twice, however
      slow they are.
`Bucket` bounds the rate from above, `Deadline` from below.

Source: RFC 6298 (time-out from round trips), RFC 5681 (window), RFC 6817 (bound of the queue).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

FIRST_WINDOW: Final = 4
QUEUE_S: Final = 0.5
"""Longest wait in the line's own queue up to which the window grows."""
PASSED: Final = 3
LEAST_TIMEOUT_S: Final = 0.25
BASE_EPOCH_S: Final = 30.0
"""How long the shortest round trip counts; lines change."""
MAX_BACKOFF: Final = 5
BURST_S: Final = 0.1
SAMPLES: Final = 16


@dataclass(slots=True)
class _Asked:
    serial: int
    at: float
    again: bool
    passed: int = 0


class Flight:
    """Chunks asked for and not yet here.  Times are monotonic seconds, given by the caller."""

    def __init__(self, limit: int, timeout_s: float, now: float) -> None:
        """
        Args:
            limit: most chunks in flight.
            timeout_s: silence after which chunks count as lost, before round trips are known and
                at least.
        """
        self._limit = limit
        self._timeout_s = timeout_s
        self._asked: dict[int, _Asked] = {}  # by index; in the order of serials
        self._serial = 0
        self._round_ends = 0  # no second halving for chunks asked for before this serial
        self._threshold = float(limit)
        self._heard_at = now
        self._silences = 0
        self._given_up: dict[int, float] = {}  # when chunks were asked for that did not come
        self._smooth_s: float | None = None
        self._deviation_s = 0.0
        self._base_s = self._next_base_s = float("inf")
        self._base_until = now + BASE_EPOCH_S
        self.window = float(min(FIRST_WINDOW, limit))

    def __contains__(self, index: int) -> bool:
        return index in self._asked

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def free(self) -> int:
        """Chunks that may be asked for now."""
        return int(self.window) - len(self._asked)

    def ask(self, indices: Sequence[int], now: float) -> None:
        """These are asked for."""
        for index in indices:
            again = self._given_up.pop(index, None) is not None
            self._asked[index] = _Asked(self._serial, now, again)
            self._serial += 1

    def arrive(self, index: int, now: float) -> None:
        """A reply for `index` is here, whatever it holds."""
        self._heard_at = now
        asked = self._asked.pop(index, None)
        if asked is None:
            if (at := self._given_up.pop(index, None)) is not None:
                self._measure(now - at, now)  # it was only late
            return
        for earlier in self._asked.values():
            if earlier.serial > asked.serial:
                break
            earlier.passed += 1
        if not asked.again:  # else nobody knows which request it answers
            self._measure(now - asked.at, now)

    def lost(self, now: float) -> list[int]:
        """Chunks that must be asked for again; they are no longer in flight."""
        silence_s = max(self._timeout_s, self._round_trip_s) * 2.0**self._silences
        late_s = max(self._round_trip_s, LEAST_TIMEOUT_S)
        silent: list[int] = []
        passed: list[int] = []
        for index, asked in self._asked.items():
            if now - max(asked.at, self._heard_at) > silence_s:
                silent.append(index)
            elif asked.passed >= PASSED and now - asked.at > late_s:
                passed.append(index)
        newest = max((self._asked[index].serial for index in passed), default=-1)
        for index in (*silent, *passed):
            self._given_up[index] = self._asked.pop(index).at
        if silent:
            self._silences = min(self._silences + 1, MAX_BACKOFF)
            self._threshold = max(2.0, self.window / 2)
            self.window = 1.0
            self._round_ends = self._serial
        elif newest >= self._round_ends:
            self.window = self._threshold = max(1.0, self.window / 2)
            self._round_ends = self._serial
        return sorted(silent + passed)

    @property
    def _round_trip_s(self) -> float:
        """Time in which a chunk should have come."""
        if self._smooth_s is None:
            return self._timeout_s
        return self._smooth_s + 4 * self._deviation_s

    def _measure(self, sample_s: float, now: float) -> None:
        self._silences = 0
        if self._smooth_s is None:
            self._smooth_s, self._deviation_s = sample_s, sample_s / 2
        else:
            self._deviation_s += (abs(sample_s - self._smooth_s) - self._deviation_s) / 4
            self._smooth_s += (sample_s - self._smooth_s) / 8
        if now > self._base_until:
            self._base_s, self._next_base_s = self._next_base_s, float("inf")
            self._base_until = now + BASE_EPOCH_S
        self._next_base_s = min(self._next_base_s, sample_s)
        self._base_s = min(self._base_s, sample_s)
        waited_s = sample_s - self._base_s
        if waited_s > 2 * QUEUE_S:
            self.window = max(1.0, self.window - 1 / self.window)
        elif waited_s <= QUEUE_S:
            step = 1.0 if self.window < self._threshold else 1 / self.window
            self.window = min(float(self._limit), self.window + step)


class Bucket:
    """Bytes that may be asked for; fills at `bytes_s`, holds a tenth of a second and one chunk."""

    def __init__(self, bytes_s: float, chunk_bytes: int, now: float) -> None:
        """
        Args:
            bytes_s: 0 is no limit.
        """
        self._bytes_s = bytes_s
        self._chunk_bytes = chunk_bytes
        self._capacity = chunk_bytes + bytes_s * BURST_S
        self._level = float(chunk_bytes)
        self._at = now

    def chunks(self, now: float) -> int | None:
        """Whole chunks that may be asked for; None is no limit."""
        if self._bytes_s <= 0:
            return None
        self._level = min(self._capacity, self._level + (now - self._at) * self._bytes_s)
        self._at = now
        return int(self._level // self._chunk_bytes)

    def take(self, chunks: int) -> None:
        self._level -= chunks * self._chunk_bytes

    def wait_s(self) -> float:
        """Seconds until one chunk may be asked for, from the last look at `chunks`."""
        if self._bytes_s <= 0:
            return 0.0
        return max(0.0, (self._chunk_bytes - self._level) / self._bytes_s)


@dataclass(slots=True)
class Deadline:
    """Whether good bytes come fast enough, over the last `window_s` seconds.

    Attributes:
        least_bytes: good bytes asked of each window; at least one.
        started_at: nothing is late before one window has passed.
    """

    window_s: float
    least_bytes: float
    started_at: float
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    bytes: int = 0
    """Good bytes of the window."""

    def add(self, count: int, now: float) -> None:
        """Good bytes came."""
        self.bytes += count
        if self._samples and now - self._samples[-1][0] < self.window_s / SAMPLES:
            at, before = self._samples[-1]
            self._samples[-1] = (at, before + count)
        else:
            self._samples.append((now, count))

    def late(self, now: float) -> bool:
        while self._samples and now - self._samples[0][0] > self.window_s:
            self.bytes -= self._samples.popleft()[1]
        return now - self.started_at > self.window_s and self.bytes < max(1.0, self.least_bytes)
