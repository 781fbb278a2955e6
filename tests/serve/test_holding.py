"""Who is refused while the event loop is behind is not read from for a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from edge_agent.serve import Overloaded
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.http_messages import HttpRequest, HttpResponse, error_response
from edge_agent.wire.manifest import CostModel

from .asking import asked, close_planes, held_back, planed
from .clients import LIVE
from .gates import Doubling, doubling, rows
from .in_memory import Line

HOLD_S = 0.05


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_planes()


class Refusing:
    """A handler that refuses each request, holding its client off, and notes when it arrived."""

    def __init__(self) -> None:
        self.arrived_s: list[float] = []

    def __call__(self, request: HttpRequest, connection: HttpConnection) -> HttpResponse:
        self.arrived_s.append(request.arrived_s)
        connection.hold_off(HOLD_S)
        return error_response(503, "no")


def test_a_refused_client_is_read_from_again_after_the_hold() -> None:
    """Each second request had to wait for a hold: it counts as sent then, and begins no other."""
    loop = asyncio.new_event_loop()
    handler = Refusing()
    line = Line(loop, handler)
    for number in range(4):
        before_s = time.perf_counter()
        line.send([LIVE])  # waits while it is not read from
        assert line.wire.reading is bool(number % 2)
        arrived_s = handler.arrived_s[-1]
        assert (arrived_s >= before_s) is not bool(number % 2)
    first, second, third, fourth = handler.arrived_s
    assert 0 <= second - first < HOLD_S, "as if sent when the hold began"
    assert third - first >= HOLD_S
    assert 0 <= fourth - third < HOLD_S
    assert line.end().count(b"503") == 4
    loop.close()


def test_a_client_that_goes_while_it_is_held_off_leaves_nothing() -> None:
    loop = asyncio.new_event_loop()
    line = Line(loop, Refusing())
    line.send([LIVE])
    assert not line.wire.reading
    line.wire.closed = True
    line.end()
    assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    loop.close()


def test_a_lane_asks_for_it_while_the_loop_is_behind() -> None:
    network = Doubling(held=True)

    def block() -> None:
        end_s = time.perf_counter() + 0.02
        while time.perf_counter() < end_s:
            pass

    async def work() -> None:
        plane = planed(doubling(network, cost=CostModel(per_item_us=0, fixed_us=50_000)))
        tasks = await held_back(plane, network, 1.0)
        tasks += await asked(plane, 2.0)
        asyncio.get_running_loop().call_soon(block)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await plane.predict("m", rows(3.0), timeout_s=0.06)
        assert caught.value.hold_s > 0
        network.open.set()
        await asyncio.gather(*tasks)

    asyncio.run(work())
