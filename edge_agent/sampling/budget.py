"""Token buckets of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_agent.wire.samples import Policy

SHARES: Final[dict[Policy, float]] = {"uniform": 0.4, "uncertain": 0.4, "event": 0.2}
"""Each stratum has its own bucket: were they shared, uncertain inputs would push out uniform ones,
and the uniform stratum would depend on what the inputs are."""

BURST_MINUTES: Final = 2.0

REMEMBERED_S: Final = 10.0
"""How long the length of a small item stands for those to come."""


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
        self._full = {
            policy: rate * 60.0 * BURST_MINUTES for policy, rate in self._per_second.items()
        }
        self._left = dict(self._full)
        self._at = clock()
        self._smallest: dict[Policy, tuple[int, float]] = {}

    def exhausted(self, policy: Policy) -> bool:
        """Whether the smallest of the latest items would be refused.

        Larger ones say nothing of what is to come, and those that the full bucket could not pay
        least of all.  Without a recent item the answer is no, so that the next one is measured.

        It changes nothing, so any thread may ask before it goes to the length of making the item.
        """
        if not self._full[policy]:
            return True
        length, at = self._smallest.get(policy, (0, 0.0))
        now = self._clock()
        if not length or now - at >= REMEMBERED_S:
            return False
        return self._left[policy] + (now - self._at) * self._per_second[policy] < length

    def take(self, policy: Policy, length: int) -> bool:
        """Whether `length` bytes of `policy` may be sent; if so they are paid for."""
        now = self._clock()
        elapsed_s = max(0.0, now - self._at)
        self._at = now
        for stratum, rate in self._per_second.items():
            self._left[stratum] = min(self._full[stratum], self._left[stratum] + rate * elapsed_s)
        if length <= self._full[policy]:
            smallest, at = self._smallest.get(policy, (length, now))
            if length <= smallest or now - at >= REMEMBERED_S:
                self._smallest[policy] = (length, now)
        if self._left[policy] < length:
            return False
        self._left[policy] -= length
        return True
