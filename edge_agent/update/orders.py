"""What is asked of the updater: the twin, a pause, the windows, a stop.  From any thread.

Says what that means for an attempt under way: whether it may go on, and what supersedes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from edge_agent.update.attempt import Attempt
from edge_agent.update.errors import OutsideWindow
from edge_agent.update.groups import Unit, unit_of
from edge_agent.wire.messages import Desired, Phase
from edge_agent.wire.windows import Window, next_opening


class Orders:
    """See the module.

    Attributes:
        desired: the newest twin; None before the first.
        paused: the device's operator wants no updates.
        stopping: the agent ends.
        by_hand: somebody waits to install from a medium.
    """

    def __init__(
        self, windows: Sequence[Window], now: Callable[[], datetime], *, paused: bool
    ) -> None:
        """
        Args:
            windows: when versions may be switched; empty is always.
            now: local time without a zone.
        """
        self.desired: Desired | None = None
        self.paused = paused
        self.stopping = threading.Event()
        self.by_hand = threading.Event()
        self._windows = tuple(windows)
        self._now = now

    @property
    def opens_at(self) -> datetime | None:
        """Local time of the next window; None when versions may be switched now."""
        return next_opening(self._windows, self._now())

    @property
    def opens_in_s(self) -> float | None:
        """Seconds to the next window; None when versions may be switched now."""
        opens_at = self.opens_at
        return None if opens_at is None else max((opens_at - self._now()).total_seconds(), 0.0)

    def outside_window(self) -> OutsideWindow:
        """Says when the next window opens; to be raised."""
        opens_at = self.opens_at
        when = "soon" if opens_at is None else opens_at.isoformat(" ", "minutes")
        return OutsideWindow(f"ready; versions may be switched from {when} on")

    def interrupted(self, attempt: Attempt) -> bool:
        """Whether an attempt must not go on to its switch."""
        if self.stopping.is_set():
            return True
        if not attempt.by_hand and (self.paused or self.by_hand.is_set()):
            return True
        return bool(self.superseded(attempt)) or self._regrouped(attempt.unit)

    def superseded(self, attempt: Attempt) -> dict[str, Phase]:
        """Phases that a newer twin puts wanted models into; without those that stand."""
        phases: dict[str, Phase] = {}
        desired = self.desired or Desired(version=0)
        wanted = desired.trials if attempt.unit.trial else desired.models
        for model, want in attempt.wants.items():
            newest = wanted.get(model)
            if attempt.by_hand:
                if newest is not None and newest.generation > want.generation:
                    phases[model] = "superseded"
            elif newest is None:
                phases[model] = "cancelled"
            elif (newest.generation, newest.target) != (want.generation, want.target):
                phases[model] = "superseded"
        return phases

    def _regrouped(self, unit: Unit) -> bool:
        if unit.group is None:
            return False
        newest = unit_of(self.desired, min(unit.wants))
        return newest is not None and newest.key != unit.key
