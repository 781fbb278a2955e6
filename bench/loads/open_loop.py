"""Open load: requests leave when they are due, whether or not the server keeps up.

Rules:
    * Arrivals are a Poisson process drawn beforehand; nothing that the server does moves them.
    * Each request has a connection to itself while it is in the works.  Where none is free the
      request waits for one here, and is given up when its deadline passes before it could leave.
    * A deadline runs from the moment of sending: what the generator delays is told as `lag`, and is
      not the server's fault.
    * Light: one timer of a millisecond sends all that is due, so a request costs about as much
      here as one `send` and one `recv`.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import uvloop

from bench.loads.client import Connection
from bench.loads.errors import LoadFailed
from edge_agent.measure import schedule

_TICK_S: Final = 0.001
_GRACE_S: Final = 1.0
_OK, _UNAVAILABLE = 200, 503


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """What is offered.

    Attributes:
        rps: mean rate of arrivals.
        seconds: how long requests are due.
        warm_up_s: requests that are due before this are sent and not counted.
        timeout_s: the deadline that each request carries; `request` must say the same.
        connections: open at the same time.
    """

    rps: float
    seconds: float
    timeout_s: float
    warm_up_s: float = 1.0
    connections: int = 250
    seed: int = 0


@dataclass(frozen=True, slots=True)
class OpenResult:
    """What became of the requests that were due after the warm-up; they add up to `offered`.

    Attributes:
        in_time: answered with 200 within the deadline.
        late: answered with 200 after it: admitted, and in vain.
        shed: refused with 503.
        failed: answered with another status.
        broken: never answered.
        unsent: given up here, for no connection was free.
        latest_ms: how much the worst of `late` was over the deadline; 0 where none was.
        p50_ms, p99_ms: of the answers with 200, from sending.
        lag_p99_ms: from when a request was due to when it left.
        cpu_share: of one core, what this generator took.
    """

    offered: int
    in_time: int
    late: int
    shed: int
    failed: int
    broken: int
    unsent: int
    latest_ms: float
    p50_ms: float
    p99_ms: float
    lag_p99_ms: float
    cpu_share: float
    goodput_rps: float


class Tally:
    """Judges each request once.  Pure: knows neither sockets nor a clock."""

    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        self._counts = dict.fromkeys(("in_time", "late", "shed", "failed", "broken", "unsent"), 0)
        self._latest_s = 0.0
        self._latencies_s: list[float] = []
        self._lags_s: list[float] = []

    def answered(self, due_s: float, sent_s: float, done_s: float, status: int) -> None:
        """Note an answer; times from the run's start.  Status 0: the connection broke."""
        if due_s < self._load.warm_up_s:
            return
        self._lags_s.append(sent_s - due_s)
        latency_s = done_s - sent_s
        if status == _OK:
            self._latencies_s.append(latency_s)
            over_s = latency_s - self._load.timeout_s
            self._counts["in_time" if over_s <= 0 else "late"] += 1
            self._latest_s = max(self._latest_s, over_s)
        else:
            self._counts[{_UNAVAILABLE: "shed", 0: "broken"}.get(status, "failed")] += 1

    def unsent(self, due_s: float) -> None:
        """Note a request that found no connection before its deadline."""
        if due_s >= self._load.warm_up_s:
            self._counts["unsent"] += 1

    def result(self, cpu_s: float) -> OpenResult:
        latencies_ms = np.array(self._latencies_s or [0.0]) * 1e3
        return OpenResult(
            offered=sum(self._counts.values()),
            latest_ms=self._latest_s * 1e3,
            p50_ms=float(np.percentile(latencies_ms, 50)),
            p99_ms=float(np.percentile(latencies_ms, 99)),
            lag_p99_ms=float(np.percentile(self._lags_s or [0.0], 99)) * 1e3,
            cpu_share=cpu_s / self._load.seconds,
            goodput_rps=self._counts["in_time"] / (self._load.seconds - self._load.warm_up_s),
            **self._counts,
        )


async def _generate(port: int, request: bytes, load: OpenLoad) -> OpenResult:
    generator = _Generator(port, request, load)
    try:
        return await generator.run()
    finally:
        generator.close()


class _Generator:
    """One run."""

    def __init__(self, port: int, request: bytes, load: OpenLoad) -> None:
        self._port = port
        self._request = request
        self._load = load
        self._tally = Tally(load)
        arrivals = schedule.poisson(load.rps, load.seed)
        self._due_s = list(itertools.takewhile(lambda at: at < load.seconds, arrivals))
        self._next = 0
        self._waiting: deque[int] = deque()
        self._free: list[Connection] = []
        self._busy: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._start_s = 0.0

    async def run(self) -> OpenResult:
        load = self._load
        for _ in range(load.connections):
            await self._open()
        cpu_before_s = time.process_time()
        self._start_s = time.perf_counter()
        while self._next < len(self._due_s):
            self._send_due(time.perf_counter() - self._start_s)
            await asyncio.sleep(_TICK_S)
        cpu_s = time.process_time() - cpu_before_s
        until_s = time.perf_counter() + load.timeout_s + _GRACE_S
        while (self._busy or self._waiting) and time.perf_counter() < until_s:
            self._send_due(time.perf_counter() - self._start_s)
            await asyncio.sleep(_TICK_S)
        for connection in self._busy:
            self._note(connection, 0)
        return self._tally.result(cpu_s)

    def close(self) -> None:
        for connection in (*self._free, *self._busy):
            connection.close()
        for task in self._opening:
            task.cancel()

    def _send_due(self, now_s: float) -> None:
        """Send all that is due; what finds no connection waits, until its deadline passes."""
        while self._next < len(self._due_s) and self._due_s[self._next] <= now_s:
            if self._free and not self._waiting:
                self._send(self._free.pop(), self._next)
            else:
                self._waiting.append(self._next)
            self._next += 1
        while self._waiting and self._due_s[self._waiting[0]] + self._load.timeout_s < now_s:
            self._tally.unsent(self._due_s[self._waiting.popleft()])
        while self._waiting and self._free:
            self._send(self._free.pop(), self._waiting.popleft())

    def _send(self, connection: Connection, index: int) -> None:
        connection.tag = index
        self._busy.add(connection)
        connection.send(self._request)

    def _answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        self._busy.discard(connection)
        self._note(connection, status)
        if not connection.alive or b"onnection: close" in head:
            connection.close()
            task = self._loop.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def _note(self, connection: Connection, status: int) -> None:
        start_s = self._start_s
        self._tally.answered(
            self._due_s[connection.tag],
            connection.sent_s - start_s,
            time.perf_counter() - start_s,
            status,
        )

    async def _open(self) -> None:
        try:
            connection = await Connection.open(self._port, self._answered)
        except OSError as error:
            if self._start_s:
                return  # one connection less; the requests that miss it are counted
            raise LoadFailed(f"open loop: {error.strerror or error}") from error
        self._free.append(connection)


def offer(port: int, request: bytes, load: OpenLoad) -> OpenResult:
    """Offer `load` to the server on the loopback address; blocks until it is over.

    Args:
        request: the whole HTTP request, its deadline included.

    Raises:
        LoadFailed: the server cannot be reached.
    """
    gc.collect()
    gc.freeze()  # a collection in the middle of a run would be the server's latency
    gc.disable()
    try:
        return uvloop.run(_generate(port, request, load))
    finally:
        gc.enable()
        gc.unfreeze()
