"""Which journalled rows in flight are sent again: the real device's rule and the simulated one's.

A control plane with much to do acknowledges late, and every row that is sent again meanwhile makes
it later.  So:

    * Time runs for the oldest row alone, from when it was sent or became the oldest: while
      acknowledgements come in order, nothing is lost.
    * At the end of that time it is sent again by itself, after twice the time each time.
    * Its acknowledgement proves that there is somebody to listen again.  Of the rows that were sent
      before, two follow; each acknowledgement of such a row doubles their number, until all that
      was lost is made good.
    * Where the broker says that nobody subscribes, the oldest row comes again soon: after two
      seconds, then four, up to the ordinary time.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

FIRST_RESEND_S: Final = 30.0
MAX_RESEND_S: Final = 300.0
NOBODY_SUBSCRIBES: Final = 0x10
"""Reason code of a PUBACK: taken, and thrown away.  Source: MQTT 5.0, 3.4.2.1."""
_FIRST_UNHEARD_S: Final = 2.0
_MAX_STEP: Final = 64


class InFlight(Protocol):
    """A row that was sent.

    Attributes:
        at: monotonic seconds of the last time.
        times: how often.
    """

    at: float
    times: int


R = TypeVar("R", bound=InFlight)


class Resending(Generic[R]):
    """See the module.  Rows are given in the order of the journal; whoever sends one counts it."""

    __slots__ = (
        "_first_s", "_oldest", "_owed", "_probed_at", "_since", "_soon_at", "_step", "_unheard_s",
    )  # fmt: skip

    def __init__(self, first_s: float = FIRST_RESEND_S) -> None:
        """
        Args:
            first_s: seconds until the oldest row is sent for the second time.
        """
        self._first_s = first_s
        self.restart()

    def restart(self) -> None:
        """A new connection: whatever waits is sent on it as if for the first time."""
        self._oldest: R | None = None
        self._since = 0.0
        self._probed_at = 0.0
        self._owed = 0
        self._step = 1
        self._soon_at = math.inf
        self._unheard_s = _FIRST_UNHEARD_S

    def unheard(self, now: float) -> None:
        """The broker has thrown a row away: nobody subscribes."""
        if self._soon_at == math.inf:
            self._soon_at = now + min(self._unheard_s, self._first_s)
            self._unheard_s *= 2

    def acknowledged(self, row: R) -> None:
        """A row in flight has been acknowledged."""
        self._soon_at = math.inf
        self._unheard_s = _FIRST_UNHEARD_S
        if row.times > 1:
            self._step = min(2 * self._step, _MAX_STEP)
            self._owed = self._step

    def late(self, rows: Collection[R], now: float) -> list[R]:
        """Rows to send again now, oldest first."""
        owed = self._of_old(rows)
        self._owed = 0
        if owed:
            return owed
        due = self.due_at(rows, now)
        if due is None or now < due:
            return []
        self._probed_at, self._step, self._soon_at = now, 1, math.inf
        return [next(iter(rows))]

    def due_at(self, rows: Collection[R], now: float) -> float | None:
        """When `late` has something next; `now` at the earliest, None when no row is in flight."""
        if self._of_old(rows):
            return now
        oldest = next(iter(rows), None)
        if oldest is not self._oldest:
            self._oldest, self._since = oldest, now
        if oldest is None:
            return None
        wait_s = min(self._first_s * 2.0 ** (oldest.times - 1), MAX_RESEND_S)
        return max(now, min(max(oldest.at, self._since) + wait_s, self._soon_at))

    def _of_old(self, rows: Collection[R]) -> list[R]:
        """What is owed: rows that were sent before the last probe, and not since."""
        if not self._owed:
            return []
        return list(islice((row for row in rows if row.at < self._probed_at), self._owed))
