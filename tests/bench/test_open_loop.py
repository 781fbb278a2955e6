"""The open loop sends by the clock whatever the server does, and judges each request once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.loads.errors import LoadFailed
from bench.loads.open_loop import OpenLoad, OpenResult, Tally, offer
from bench.loads.processes import free_port

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
SHED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone"

RPS = 300

Answers = Callable[[int], tuple[bytes, float]]
"""From a request's number to its answer, empty for a closed connection, and its delay."""


@contextmanager
def server(answers: Answers) -> Iterator[int]:
    """A server on a thread of its own; its port."""
    loop = asyncio.new_event_loop()
    count = 0

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while await reader.readexactly(len(REQUEST)):
                answer, delay_s = answers(count)
                count += 1
                await asyncio.sleep(delay_s)
                for part in (answer[:20], answer[20:]):
                    writer.write(part)
                    await writer.drain()
                if not answer or answer is LAST:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def stop(server: asyncio.Server) -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(client, "127.0.0.1", 0), loop
    ).result(10)
    try:
        yield started.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(started), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def load(connections: int = 40, timeout_s: float = 3.0) -> OpenLoad:
    return OpenLoad(
        rps=RPS, seconds=0.6, warm_up_s=0.2, timeout_s=timeout_s, connections=connections
    )


def outcomes(result: OpenResult) -> int:
    return (
        result.in_time + result.late + result.shed + result.failed + result.broken + result.unsent
    )


def test_requests_keep_their_schedule() -> None:
    with server(lambda _: (OK, 0.0)) as port:
        result = offer(port, REQUEST, load())
    assert result.offered == outcomes(result) == result.in_time
    assert RPS * 0.4 * 0.7 < result.offered < RPS * 0.4 * 1.3
    assert result.goodput_rps == pytest.approx(result.in_time / 0.4)
    assert result.lag_p99_ms < 250  # a millisecond where nobody else has the cores


def test_a_server_that_stalls_does_not_slow_the_arrivals() -> None:
    with server(lambda _: (OK, 0.0)) as port:
        calm = offer(port, REQUEST, load())
    with server(lambda _: (OK, 0.5)) as port:
        stalled = offer(port, REQUEST, load(connections=200, timeout_s=0.3))
    assert stalled.offered == calm.offered
    assert stalled.late == stalled.offered and stalled.in_time == 0
    assert stalled.latest_ms > 150 and stalled.goodput_rps == 0


def test_what_finds_no_connection_is_given_up_and_counted() -> None:
    with server(lambda _: (OK, 0.2)) as port:
        result = offer(port, REQUEST, load(connections=2, timeout_s=0.3))
    assert result.unsent > result.offered / 2
    assert result.offered == outcomes(result)


def test_shed_requests_and_lost_connections_are_told_apart() -> None:
    kinds = [OK, SHED, b"", LAST]
    with server(lambda count: (kinds[count % 4], 0.0)) as port:
        result = offer(port, REQUEST, load(connections=10))
    assert result.offered == outcomes(result)
    assert min(result.in_time, result.shed, result.broken) > 0
    # connections are made anew: ten that each end at their second request would carry twenty
    assert result.offered - result.unsent > 40


def test_a_server_that_is_not_there_stops_the_run() -> None:
    with pytest.raises(LoadFailed, match="open loop"):
        offer(free_port(), REQUEST, load())


def test_goodput_counts_what_was_answered_in_time_after_the_warm_up() -> None:
    tally = Tally(OpenLoad(rps=1, seconds=3, warm_up_s=1, timeout_s=0.1))
    tally.answered(0.5, 0.5, 0.51, 200)  # warm-up
    tally.answered(1.0, 1.0, 1.09, 200)
    tally.answered(1.1, 1.3, 1.39, 200)  # the generator was late, the server was not
    tally.answered(1.2, 1.2, 1.35, 200)  # late
    tally.answered(1.3, 1.3, 1.31, 503)
    tally.answered(1.4, 1.4, 1.41, 400)
    tally.answered(1.5, 1.5, 1.51, 0)
    tally.unsent(1.6)
    tally.unsent(0.6)  # warm-up
    result = tally.result(0.3)
    assert (result.in_time, result.late, result.shed) == (2, 1, 1)
    assert (result.failed, result.broken, result.unsent, result.offered) == (1, 1, 1, 7)
    assert result.goodput_rps == 1.0
    assert result.latest_ms == pytest.approx(50)
    assert result.cpu_share == pytest.approx(0.1)
