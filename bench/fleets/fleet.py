"""Simulated devices on an event loop of their own thread, asked from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from bench.fleets.plane import Plane
from bench.loads.errors import BenchError
from fleet.simulate.fleet import Fleet, loop_factory, sources_of
from fleet.simulate.gateway import GatewayFleet
from fleet.simulate.identities import Member
from fleet.simulate.line import Trust
from fleet.simulate.models import Behaviour
from fleet.simulate.standing import Broker, Counts

T = TypeVar("T")


class Loop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self._loop = loop_factory()()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, what: Callable[[], T], timeout_s: float = 600.0) -> T:
        """Run `what` on the loop; its result."""

        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout_s)

    def finish(self, stop: Callable[[], object], timeout_s: float = 600.0) -> None:
        """Await what `stop` returns, on the loop."""

        async def run() -> None:
            await stop()  # type: ignore[misc]

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Devices:
    """A fleet, or gateways, on a loop."""

    def __init__(self, loop: Loop, fleet: Fleet | GatewayFleet, broker: Broker) -> None:
        self.loop = loop
        self.fleet = fleet
        self._broker = broker

    @property
    def counts(self) -> Counts:
        return self._broker.counts

    def start(self) -> None:
        self.loop.call(self.fleet.start)

    def until(
        self, condition: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.05
    ) -> float:
        """Wait; seconds that it took.

        Raises:
            BenchError: not in time.
        """
        began = time.perf_counter()
        while not condition():
            if time.perf_counter() - began > timeout_s:
                raise BenchError(f"{what}: not within {timeout_s:.0f} s; {self.counts}")
            time.sleep(poll_s)
        return time.perf_counter() - began


@contextlib.contextmanager
def devices(plane: Plane, members: Sequence[Member], behaviour: Behaviour) -> Iterator[Devices]:
    """A fleet of `members`; not started."""
    loop = Loop()
    broker = _broker(plane, len(members))
    fleet = loop.call(lambda: Fleet(members, broker, behaviour))
    try:
        yield Devices(loop, fleet, broker)
    finally:
        loop.finish(fleet.stop)
        loop.close()


@contextlib.contextmanager
def gateways(
    plane: Plane, members: Sequence[Member], below: Sequence[Sequence[str]], behaviour: Behaviour
) -> Iterator[Devices]:
    """A gateway for each of `members`, with the devices below it; not started."""
    loop = Loop()
    broker = _broker(plane, len(members))

    names = {member.device_id: some for member, some in zip(members, below, strict=True)}
    fleet = loop.call(lambda: GatewayFleet(members, names, broker, behaviour))
    try:
        yield Devices(loop, fleet, broker)
    finally:
        loop.finish(fleet.stop)
        loop.close()


def _broker(plane: Plane, connections: int) -> Broker:
    host, port = plane.settings.host, plane.settings.broker_port
    trust = Trust(plane.services.authority.certificate_path)
    return Broker(host, port, trust, sources=sources_of(host, connections))
