"""The instances of one session: a run takes one, uses it alone, and gives it back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

from edge_agent.runtime.errors import RunFailed

T = TypeVar("T")


class Pool(Generic[T]):
    """Instances that several threads share.  Whoever finds none free waits."""

    def __init__(self, items: Sequence[T]) -> None:
        self._free: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        for item in items:
            self._free.put(item)
        self._count = len(items)
        self._closing = threading.Lock()

    def take(self) -> T:
        """A free instance; to be given back whatever happens.

        Raises:
            RunFailed: the pool is closed.
        """
        item = self._free.get()
        if item is None:
            self._free.put(None)  # for the next one that waits
            raise RunFailed("the session is closed")
        return item

    def give(self, item: T) -> None:
        self._free.put(item)

    def close(self) -> list[T]:
        """All instances, once the runs under way have ended; nothing the second time."""
        with self._closing:
            items = [item for _ in range(self._count) if (item := self._free.get()) is not None]
            if self._count:
                self._free.put(None)
            self._count = 0
            return items
