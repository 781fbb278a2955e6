"""The parts of the benchmark, each measured on a control plane that runs."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from bench.fleets.contents import MODEL, PROFILE
from bench.fleets.fleet import Devices, devices, gateways
from bench.fleets.plane import BROKER, Plane
from bench.loads import processes
from bench.loads.errors import BenchError
from edge_agent.wire.messages import MetricsReport
from fleet.client.gateway_schemas import MAX_AT_ONCE, BelowIn
from fleet.client.schemas import RolloutIn, WaveIn
from fleet.simulate.identities import Member
from fleet.simulate.models import Behaviour

CONTROL: Final = "control plane"
_PATIENCE_S: Final = 900.0
_ENDED: Final = frozenset({"COMPLETED", "CANCELLED", "HALTED", "ROLLED_BACK"})

QUIET: Final = Behaviour(metrics_interval_s=0, keepalive_s=60, resend_s=120.0).faster(20)
"""Devices that say nothing by themselves, so that what is measured is alone."""

REPORT: Final = MetricsReport(
    model=MODEL, version=1, window_s=60.0, requests=600, errors=1, rejects=0, corrections=0,
    latency_p50_us=8000.0, latency_p99_us=16000.0, rss_mib=70.0,
)  # fmt: skip
"""What devices send most."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A fleet that connects.

    Attributes:
        per_second: connections, TLS and subscriptions included.
        online_s: from the first attempt until the database has every device online.
        simulator_kib: memory of the simulator for each device.
    """

    devices: int
    per_second: float
    online_s: float
    broker_mib_per_1000: float
    control_plane_mib_per_1000: float
    control_plane_mib: float
    simulator_kib: float


@dataclass(frozen=True, slots=True)
class Ingested:
    """Messages a second; medians over the rounds."""

    messages: int
    ingest_per_second: float
    bare_per_second: float

    @property
    def share(self) -> float:
        return self.ingest_per_second / self.bare_per_second


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers of the device list, filtered and paged, in ms."""

    devices: int
    requests: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class RolledOut:
    """A rollout to so many devices; processor seconds of the control plane, without the broker."""

    devices: int
    seconds: float
    cpu_s: float
    state: str


@dataclass(frozen=True, slots=True)
class Held:
    """Devices behind gateways.

    Attributes:
        online_s: until the database has every device online.
        held_s: for how long they were then held, with a report from each.
        applied: reports that arrived and were acknowledged in that time.
    """

    gateways: int
    devices: int
    online_s: float
    held_s: float
    applied: int
    broker_mib_per_1000: float
    control_plane_mib_per_1000: float
    simulator_kib: float


def connect(plane: Plane, fleet: Devices, count: int) -> Connected:
    """All devices connect; `fleet` is left connected."""
    before = {of: plane.memory_mib(of) for of in (BROKER, CONTROL)}
    own = psutil.Process().memory_info().rss
    fleet.start()
    connecting_s = fleet.until(lambda: fleet.counts.connects >= count, _PATIENCE_S, "connecting")
    online_s = connecting_s + fleet.until(
        lambda: plane.online() >= count, _PATIENCE_S, "coming online", poll_s=0.5
    )
    after = {of: plane.memory_mib(of) for of in (BROKER, CONTROL)}
    thousands = count / 1000
    return Connected(
        count,
        count / connecting_s,
        online_s,
        (after[BROKER] - before[BROKER]) / thousands,
        (after[CONTROL] - before[CONTROL]) / thousands,
        after[CONTROL],
        (psutil.Process().memory_info().rss - own) / 1024 / count,
    )


def ingest(plane: Plane, members: Sequence[Member], messages: int, rounds: int) -> Ingested:
    """The same journals, emptied by ingest and by a subscriber that only acknowledges, in turn."""
    rates: dict[str, list[float]] = {"ingest": [], "bare": []}
    each = max(1, messages // len(members))
    for _ in range(rounds):
        rates["ingest"].append(_emptied(plane, members, each))
        plane.stop_ingest()
        try:
            with _bare(plane):
                rates["bare"].append(_emptied(plane, members, each))
        finally:
            plane.start_ingest()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return Ingested(each * len(members), medians["ingest"], medians["bare"])


def _emptied(plane: Plane, members: Sequence[Member], each: int) -> float:
    """Messages a second while all journals empty."""
    report = REPORT.encode()
    with devices(plane, members, QUIET) as fleet:
        fleet.start()
        fleet.until(lambda: fleet.counts.up >= len(members), _PATIENCE_S, "connecting")
        some = fleet.fleet.devices

        def fill() -> None:
            for device in some:
                for _ in range(each):
                    device.journal.append("metrics", report)
                device.flush()

        began = time.perf_counter()
        fleet.loop.call(fill)
        fleet.until(
            lambda: not any(len(device.journal) for device in some), _PATIENCE_S, "journals",
            poll_s=0.01,
        )  # fmt: skip
        return each * len(members) / (time.perf_counter() - began)


@contextlib.contextmanager
def _bare(plane: Plane) -> Iterator[None]:
    command = [
        sys.executable, "-m", "bench.fleets.bare", str(plane.directory),
        str(plane.own_broker_port),
    ]  # fmt: skip
    with processes.started("bare subscriber", command, talks=True) as server:
        server.hear(60)
        yield


def api(plane: Plane, count: int, requests: int) -> Asked:
    """Pages of 100 by profile, label, search and presence, anywhere in the list."""
    times: list[float] = []
    for number in range(requests + 5):
        offset = (number * 997) % max(1, count - 100)
        filters: dict[str, object] = [
            {"profile": PROFILE}, {"labels": ["site=b"]}, {"online": True}, {"search": "bench-00"},
            {"profile": PROFILE, "labels": ["site=c"], "online": True},
        ][number % 5]  # fmt: skip
        began = time.perf_counter()
        plane.client.devices(offset=offset if number % 2 else 0, limit=100, **filters)  # type: ignore[arg-type]
        if number >= 5:
            times.append(1000 * (time.perf_counter() - began))
    times.sort()
    p95 = times[math.ceil(0.95 * len(times)) - 1]
    return Asked(count, len(times), statistics.median(times), p95)


def rollout(plane: Plane, version: int, label: str, count: int) -> RolledOut:
    """A version to the devices with a label, in one wave, until every one is healthy."""
    plane.release(version)
    before, began = plane.cpu_s(CONTROL), time.perf_counter()
    made = plane.client.start_rollout(
        RolloutIn(
            model=MODEL, version=version, labels={label: "yes"}, probation_s=0.5,
            phase_timeout_s=_PATIENCE_S, waves=[WaveIn(percent=100, soak_s=0)],
        )
    )  # fmt: skip
    state = made.state
    while state not in _ENDED:
        if time.perf_counter() - began > _PATIENCE_S:
            raise BenchError(f"the rollout to {count} devices is {state} after {_PATIENCE_S:.0f} s")
        time.sleep(0.5)
        state = next(one.state for one in plane.client.rollouts().items if one.id == made.id)
    took_s = time.perf_counter() - began
    return RolledOut(count, took_s, plane.cpu_s(CONTROL) - before, state)


def exponent(found: Sequence[RolledOut]) -> float | None:
    """Slope of log processor time over log devices, by least squares; None for fewer than two."""
    points = [(math.log(each.devices), math.log(max(each.cpu_s, 1e-3))) for each in found]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def hold(plane: Plane, count: int, each: int, seconds: float) -> Held:
    """`count` gateways of `each` devices come online, and each device reports once."""
    names = [f"gateway-{number:03d}" for number in range(count)]
    below = [[f"{name}-{number:04d}" for number in range(each)] for name in names]
    members = plane.members(names, {})
    for name, devices_below in zip(names, below, strict=True):
        for first in range(0, each, MAX_AT_ONCE):
            some = devices_below[first : first + MAX_AT_ONCE]
            plane.client.register_below(name, BelowIn(devices=some, profile=PROFILE))
    total = count * each
    known = plane.online()
    before = {of: plane.memory_mib(of) for of in (BROKER, CONTROL)}
    own = psutil.Process().memory_info().rss
    with gateways(plane, members, below, QUIET) as held:
        held.start()
        online_s = held.until(
            lambda: plane.online() >= known + count + total, _PATIENCE_S, "coming online",
            poll_s=1.0,
        )  # fmt: skip
        after = {of: plane.memory_mib(of) for of in (BROKER, CONTROL)}
        simulator = psutil.Process().memory_info().rss - own
        applied, held_s = _report_once(held, total, seconds)
        if held.counts.up != count:
            raise BenchError(f"{count - held.counts.up} gateways were lost while they were held")
    thousands = total / 1000
    return Held(
        count,
        total,
        online_s,
        held_s,
        applied,
        (after[BROKER] - before[BROKER]) / thousands,
        (after[CONTROL] - before[CONTROL]) / thousands,
        simulator / 1024 / total,
    )


def _report_once(held: Devices, total: int, seconds: float) -> tuple[int, float]:
    """Every device journals one message; how many were acknowledged within `seconds`."""
    body = REPORT.encode()
    devices_below = held.fleet.devices

    def say() -> None:
        for device in devices_below:
            device.journalled("metrics", body)

    def waiting() -> int:
        return sum(len(device.journal) for device in devices_below)

    held.loop.call(say)
    began = time.perf_counter()
    while waiting() and time.perf_counter() - began < seconds:
        time.sleep(0.5)
    return total - waiting(), time.perf_counter() - began
