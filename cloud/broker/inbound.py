"""What has arrived and waits to be handled: bounded by number and by bytes, taken in runs."""

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
        self._waiting: deque[tuple[str, M]] = deque()
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
            self._waiting.append((key, message))
            self._bytes += len(message.payload)
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def take(self, limit: int) -> tuple[str, list[M]] | None:
        """The messages of one key that are next, at most `limit`; None after `close`."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            was_full = self._is_full()
            key = self._waiting[0][0]
            run: list[M] = []
            while self._waiting and len(run) < limit and self._waiting[0][0] == key:
                message = self._waiting.popleft()[1]
                self._bytes -= len(message.payload)
                run.append(message)
            if was_full:
                self._changed.notify_all()
            return key, run

    def close(self) -> None:
        """Drop what waits and wake everybody."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._max_messages or self._bytes >= self._max_bytes
