"""Token buckets of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_agent.wire.samples import Policy

SHARES: Final[dict[Policy, float]] = {"uniform": 0.4, "uncertain": 0.4, "event": 0.2}
"""Each stratum has its own bucket: were they shared, uncertain inputs would push out uniform ones,
and the uniform stratum would depend on what the inputs are."""

BURST_MINUTES: Final = 2.0


class ByteBudget:
    """A token bucket for each stratum.  Not thread-safe."""

    def __init__(self, max_bytes_per_minute: int, clock: Callable[[], float]) -> None:
        """
        Args:
            max_bytes_per_minute: of all strata together.
            clock: monotonic seconds.
        """
        self._clock = clock
        self._per_second = {
            policy: share * max_bytes_per_minute / 60.0 for policy, share in SHARES.items()
        }
        self._left = {
            policy: rate * 60.0 * BURST_MINUTES for policy, rate in self._per_second.items()
        }
        self._at = clock()
        self._refused: dict[Policy, float] = dict.fromkeys(SHARES, 0.0)

    def exhausted(self, policy: Policy) -> bool:
        """Whether an item as long as the one refused last would be refused again.

        It changes nothing, so any thread may ask before it goes to the length of making the item.
        """
        wanted = self._refused[policy]
        if not wanted:
            return False
        gained = (self._clock() - self._at) * self._per_second[policy]
        return self._left[policy] + gained < wanted

    def take(self, policy: Policy, length: int) -> bool:
        """Whether `length` bytes of `policy` may be sent; if so they are paid for."""
        now = self._clock()
        elapsed_s = max(0.0, now - self._at)
        self._at = now
        for stratum, rate in self._per_second.items():
            full = rate * 60.0 * BURST_MINUTES
            self._left[stratum] = min(full, self._left[stratum] + rate * elapsed_s)
        if self._left[policy] < length:
            self._refused[policy] = length
            return False
        self._refused[policy] = 0.0
        self._left[policy] -= length
        return True
