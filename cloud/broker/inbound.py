"""What has arrived and waits to be handled: bounded by number and by bytes, taken in runs.

A run is of one key, in the order of arrival, and passes over messages of other keys between them:
devices send reports and states by turns, and a transaction for each would be most of the work.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def payload(self) -> bytes: ...


M = TypeVar("M", bound=Sized)


class Inbound(Generic[M]):
    """A queue between the network's thread and the handlers'."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: dict[str, deque[tuple[int, M]]] = {}
        self._arrived = 0
        self._count = 0
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, key: str, message: M) -> None:
        """Add a message; waits while there is no room.  After `close` it is dropped."""
        with self._changed:
            while self._is_full() and not self._closed:
                self._changed.wait()
            if self._closed:
                return
            self._arrived += 1
            self._waiting.setdefault(key, deque()).append((self._arrived, message))
            self._count += 1
            self._bytes += len(message.payload)
            if self._count == 1:
                self._changed.notify_all()

    def take(self, limit: int) -> tuple[str, list[M]] | None:
        """The first messages of the key whose turn it is, at most `limit`; None after `close`.

        It is the turn of whoever has waited longest.
        """
        with self._changed:
            while not self._count and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            was_full = self._is_full()
            key, waiting = min(
                ((key, each) for key, each in self._waiting.items() if each),
                key=lambda pair: pair[1][0][0],
            )
            run = [waiting.popleft()[1] for _ in range(min(limit, len(waiting)))]
            self._count -= len(run)
            self._bytes -= sum(len(message.payload) for message in run)
            if was_full:
                self._changed.notify_all()
            return key, run

    def close(self) -> None:
        """Drop what waits and wake everybody."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._count = self._bytes = 0
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return self._count >= self._max_messages or self._bytes >= self._max_bytes
