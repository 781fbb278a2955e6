"""One device may not take the place of the others: a token bucket each.

What is too much is dropped without an acknowledgement, so an honest device that has a long journal
to empty sends it again, later.  Memory is bounded: a bucket that is full again is forgotten.
"""

from __future__ import annotations

from typing import Final

RATE: Final = 500.0
"""Messages a second that a device may send for long."""
BURST: Final = 5000.0
"""Messages that it may send at once."""
_REMEMBERED: Final = 50_000
"""Buckets above which those that are full again are looked for."""


class Floods:
    """For one thread."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}  # device → tokens, at
        self._sweep_above = _REMEMBERED

    def admit(self, device: str, now: float) -> bool:
        """Whether one more message of `device` may pass at `now`, in seconds of any clock."""
        tokens, at = self._buckets.get(device, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._rate)
        passes = tokens >= 1.0
        self._buckets[device] = (tokens - passes, now)
        if len(self._buckets) > self._sweep_above:
            self._sweep(now)
        return passes

    def _sweep(self, now: float) -> None:
        self._buckets = {
            device: (tokens, at)
            for device, (tokens, at) in self._buckets.items()
            if tokens + (now - at) * self._rate < self._burst
        }
        self._sweep_above = max(_REMEMBERED, 2 * len(self._buckets))
