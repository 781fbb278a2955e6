"""What the leader keeps in memory between its turns, so that a turn without news costs next to
nothing: the states of the rollouts, and up to when it has seen the devices' changes.

Nothing here is needed: an orchestrator that starts anew reads it all.  A state is used only if the
row's revision is still the one that it was kept under, and kept only once its turn is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fleet.rollouts.model import ACTIVE_STATES, Rollout

OVERLAP_S: Final = 2.0
"""Changes that are this much older than the last turn are read again: their commits may have come
after it, and clocks differ a little."""
LOOK_EVERY_S: Final = 30.0
"""After this time all devices under way are looked at, whatever the clocks of the writers say."""
IDLE_TICK_S: Final = 1e-4
"""Seconds between two ticks without news, for each device of a rollout: a large one ticks less."""
ENDED_KEPT_S: Final = 60.0


@dataclass(slots=True)
class Known:
    """One rollout.

    Attributes:
        revision: of the row that `rollout` was read from or written to.
        ticked_at: when its timers were last looked at.
        looked_at: when all of its devices were last looked at.
    """

    revision: int
    rollout: Rollout
    ticked_at: float
    looked_at: float

    def tick_due(self, now: float) -> bool:
        return now >= self.ticked_at + IDLE_TICK_S * len(self.rollout.assignments)

    def look_due(self, now: float) -> bool:
        return now >= self.looked_at + LOOK_EVERY_S


class Kept:
    """See the module.  Within a turn `put` is provisional until `commit`.

    Attributes:
        changes_since: changes of devices from here on are news, or were read a few times at most.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            clock: seconds since the epoch, as those who write devices' rows have it.
        """
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._turn: dict[str, Known] = {}
        self._last_began_at = clock()
        self._began_at = self._last_began_at
        self.changes_since = 0.0

    def begin(self) -> None:
        """A turn begins; what a turn that failed has put is dropped."""
        self._turn.clear()
        self._began_at = self._clock()
        self.changes_since = self._last_began_at - OVERLAP_S

    def commit(self, now: float) -> None:
        """The turn's transaction is committed."""
        self._known.update(self._turn)
        self._turn.clear()
        self._last_began_at = self._began_at
        for rollout_id, known in list(self._known.items()):
            if known.rollout.state not in ACTIVE_STATES and now > known.ticked_at + ENDED_KEPT_S:
                del self._known[rollout_id]

    def get(self, rollout_id: str, revision: int) -> Known | None:
        """The state, if it is the one of `revision`."""
        known = self._turn.get(rollout_id) or self._known.get(rollout_id)
        return known if known is not None and known.revision == revision else None

    def put(self, rollout_id: str, known: Known) -> None:
        self._turn[rollout_id] = known
