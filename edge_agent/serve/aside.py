"""Threads beside the event loop for what takes longer than a turn of it may: one, in order, each.

Rules:
    * What waits is bounded; beyond that the request is refused.
    * What a request holds is counted until its thread is done with it, though its client has gone.
    * Nothing goes on for a client that has gone, and what has not begun for it never does.

Knows no route.  Does not run models: `lanes` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from edge_agent.serve.errors import Crowded
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.http_messages import Limits

MAX_WAITING: Final = 64

T = TypeVar("T")


class SideThread:
    """One thread.  Used on one event loop."""

    def __init__(self, name: str, max_waiting: int = MAX_WAITING) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._max_jobs = max_waiting + 1
        self._jobs = 0

    @property
    def waiting(self) -> int:
        """Jobs that have not begun, or not ended, for clients that are still there."""
        return self._jobs

    def close(self) -> None:
        """What has begun is finished, nothing else is begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def run(
        self,
        connection: HttpConnection,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[Exception], None],
        *,
        lasting: bool = False,
    ) -> None:
        """Do `work` in the thread, then go on on the event loop with what it made or raised.

        Args:
            then: what it raises goes to `failed` as well.
            lasting: it is done even if the client has gone before it began.

        Raises:
            Crowded: too much waits already.
        """
        if self._jobs >= self._max_jobs:
            raise Crowded
        job = _Job(work, lasting=lasting)
        loop = asyncio.get_running_loop()

        def finished(future: Future[T]) -> None:
            self._jobs -= 1
            del job.future  # it keeps this function, and its result would stay with it
            if job.gone:
                job.give_back()
                return
            connection.job = None
            if future.cancelled():
                return  # the server has stopped
            error = future.exception()
            if error is None:
                try:
                    then(future.result())
                except Exception as raised:
                    failed(raised)
            elif isinstance(error, Exception):
                failed(error)

        def tell(future: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finished, future)

        self._jobs += 1
        connection.job = job
        job.future = self._executor.submit(job)
        job.future.add_done_callback(tell)


class _Job(Generic[T]):
    """Work of one request, and what it holds after its client has gone."""

    __slots__ = ("_held_bytes", "_lasting", "_limits", "_work", "future", "gone")

    future: Future[T]

    def __init__(self, work: Callable[[], T], *, lasting: bool) -> None:
        self._work: list[Callable[[], T]] = [work]
        self._lasting = lasting
        self._limits: Limits | None = None
        self._held_bytes = 0
        self.gone = False

    def __call__(self) -> T:
        return self._work.pop()()  # from here on nothing else holds what it works on

    def abandon(self, limits: Limits, held_bytes: int) -> None:
        self.gone = True
        self._limits = limits
        self._held_bytes = held_bytes
        if not self._lasting and self.future.cancel():
            self._work.clear()  # the executor keeps the job until its turn comes; not its body
            self.give_back()

    def give_back(self) -> None:
        """Count what it held no more."""
        if self._limits is not None:
            self._limits.inflight_bytes -= self._held_bytes
            self._limits = None
