"""Holding off a client that was refused: for a while it is not read from.

Where requests come faster than they can be read and refused, reading them takes all the time there
is, and what could be answered grows too old in its socket.  A refused client that asks again at
once gains nothing from it, so the next thing it says may lie there for a moment.

Rules:
    * What is read after a hold may have been sent when it began, so it counts as arrived then.
    * A request that a hold has made late is refused without another: the client's next one is new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class HoldOff:
    """The holds of one connection.  Used on one event loop."""

    __slots__ = ("_since_s", "_timer", "_was_held")

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._since_s: float | None = None
        self._was_held = False

    @property
    def active(self) -> bool:
        """Whether the client is not to be read from now."""
        return self._timer is not None

    def begin(self, seconds: float, over: Callable[[], None]) -> None:
        """Hold the client off for so long, then call `over`; not right after another hold."""
        if self._timer is None and not self._was_held:
            self._since_s = time.perf_counter()
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end, over)

    def arrived_s(self) -> float:
        """When the request that is complete now has arrived, by `time.perf_counter`."""
        since_s = self._since_s
        self._was_held = since_s is not None and self._timer is None
        if since_s is None or not self._was_held:
            return time.perf_counter()
        self._since_s = None
        return since_s

    def cancel(self) -> None:
        """The client has gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, over: Callable[[], None]) -> None:
        self._timer = None
        over()
