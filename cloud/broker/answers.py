"""Waiting for what a broker answers to publishes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from paho.mqtt.reasoncodes import ReasonCode


class Answer:
    """The broker's answer to one publish.  Answer and listener arrive in either order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: ReasonCode | None = None
        self._listener: Callable[[ReasonCode], None] | None = None

    def give(self, reason: ReasonCode) -> bool:
        """Whether somebody listened already."""
        with self._lock:
            self._reason = reason
            listener = self._listener
        if listener is not None:
            listener(reason)
        return listener is not None

    def listen(self, listener: Callable[[ReasonCode], None]) -> bool:
        """Whether the answer was there already."""
        with self._lock:
            self._listener = listener
            reason = self._reason
        if reason is not None:
            listener(reason)
        return reason is not None


class Countdown:
    """Waits until as many are done as were expected."""

    def __init__(self) -> None:
        self._left = 0
        self._changed = threading.Condition()

    def expect(self) -> None:
        with self._changed:
            self._left += 1

    def done(self) -> None:
        with self._changed:
            self._left -= 1
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Whether all are done within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._left <= 0, timeout_s)
