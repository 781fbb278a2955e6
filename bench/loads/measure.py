"""What is measured on one started server.  Every function blocks; none runs beside another."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Final

from bench.loads import witness, wrk
from bench.loads.client import Connection
from bench.loads.errors import LoadFailed, ServerFailed
from bench.loads.networks import Bundle, Floats
from bench.loads.open_loop import OpenLoad, OpenResult, offer
from bench.loads.processes import ServerProcess
from bench.loads.requests import HttpRequest, Kind, infer, read_answer
from bench.loads.witness import matches

WARM_UP_S: Final = 1
SETTLE_S: Final = 8
"""Until a sampler that may keep anything has spent its first budget; from then on it keeps what a
minute allows, as on a device that has run for more than a few seconds."""
OVERLOAD: Final = 3.0
SWAP_HZ: Final = 10.0
_WITNESSES: Final = 2
_CALM_S: Final = 1.0
_LONGER: Final = 5


@dataclass(frozen=True, slots=True)
class Figures:
    """One server under one closed load.

    Attributes:
        pss_mb: after it, in megabytes (10⁶ bytes).
    """

    rps: float
    cpu_us_per_request: float
    p50_us: float
    p99_us: float
    pss_mb: float
    faults: int


@dataclass(frozen=True, slots=True)
class SwapFigures:
    """One server whose versions change under load.

    Attributes:
        dropped: answers with another status than 2xx, requests without an answer, and answers that
            are not those of the version they name; of wrk and of the witness together.
        read: answers that the witness read and found right.
    """

    swaps: int
    hz: float
    rps: float
    p99_us: float
    read: int
    dropped: int
    first_fault: str


@dataclass(frozen=True, slots=True)
class OverloadFigures:
    """One server under several times what it can answer."""

    capacity_rps: float
    offered_rps: float
    timeout_ms: float
    goodput_share: float
    result: OpenResult


def settle(port: int, request: HttpRequest, *, connections: int) -> None:
    """Load a server until it does what it will do from then on."""
    wrk.run(port, request, connections=connections, seconds=SETTLE_S)


def closed(
    server: ServerProcess, port: int, request: HttpRequest, *, connections: int, seconds: int
) -> Figures:
    """`connections` clients that each send the next request when the last one is answered."""
    wrk.run(port, request, connections=connections, seconds=WARM_UP_S)
    for span_s in (seconds, seconds * _LONGER):
        before_s = server.cpu_s()
        found = wrk.run(port, request, connections=connections, seconds=span_s)
        cpu_s = server.cpu_s() - before_s
        if found.requests > connections:
            break  # else requests take about as long as the span, which the edges distort
    if found.requests == 0:
        raise server.failed("it answered nothing")
    return Figures(
        rps=found.rps,
        cpu_us_per_request=cpu_s / found.requests * 1e6,
        p50_us=found.p50_us,
        p99_us=found.p99_us,
        pss_mb=server.pss_mb(),
        faults=found.refused + found.broken,
    )


def ask(
    port: int, request: HttpRequest, *, timeout_s: float = 5.0
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection of its own; status, headers by lower-case name, body.

    Raises:
        OSError: nobody answers.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", request.path, request.body, request.headers)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def require_right(port: int, request: HttpRequest, expected: Floats) -> None:
    """Ask once and compare.

    Raises:
        ServerFailed: the answer is not `expected`.
    """
    status, headers, body = ask(port, request, timeout_s=30.0)
    if status != 200:
        raise ServerFailed(f"{status}: {body[:200].decode(errors='replace')}")
    _, logits = read_answer(headers, body)
    if not matches(logits.reshape(expected.shape), expected):
        raise ServerFailed(f"a wrong answer: {logits.ravel()[:3]}… for {expected.ravel()[:3]}…")


def idle_cpu_percent(
    server: ServerProcess, port: int, request: HttpRequest, seconds: float
) -> float:
    """Processor time with one open connection on which nothing is asked, in percent of a core."""

    async def run() -> float:
        answered = asyncio.Event()
        connection = await Connection.open(port, lambda *_: answered.set())
        connection.send(request.encode())
        await answered.wait()
        await asyncio.sleep(_CALM_S)
        before_s, began_s = server.scheduled_s(), time.monotonic()
        await asyncio.sleep(seconds)
        taken_s = server.scheduled_s() - before_s
        share = taken_s / (time.monotonic() - began_s)
        if not connection.alive:
            raise ServerFailed("the server closed a connection that was idle")
        connection.close()
        return share * 100

    return asyncio.run(run())


def swap(
    server: ServerProcess,
    port: int,
    bundles: tuple[Bundle, Bundle],
    kind: Kind,
    *,
    connections: int,
    seconds: int,
) -> SwapFigures:
    """Install versions in turn under load, ten a second, and count what goes wrong."""
    request = infer(bundles[0].network, kind)
    expected = {str(each.version): each.answer for each in bundles}
    found: list[wrk.WrkResult | LoadFailed] = []

    def load() -> None:
        try:
            found.append(wrk.run(port, request, connections=connections, seconds=seconds))
        except LoadFailed as error:
            found.append(error)

    thread = threading.Thread(target=load)
    server.tell({"swap_hz": SWAP_HZ, "seconds": seconds})
    thread.start()
    seen = witness.watch(port, request, expected, connections=_WITNESSES, seconds=seconds)
    thread.join()
    said = server.hear(seconds + 30.0)
    [counted] = found
    if isinstance(counted, LoadFailed):
        raise counted
    swaps, took_s = int(str(said["swaps"])), float(str(said["seconds"]))
    return SwapFigures(
        swaps=swaps,
        hz=swaps / took_s,
        rps=counted.rps,
        p99_us=counted.p99_us,
        read=seen.versions.total(),
        dropped=counted.refused + counted.broken + seen.faults,
        first_fault=seen.first_fault,
    )


def overload(
    server: ServerProcess,
    port: int,
    bundle: Bundle,
    *,
    timeout_ms: float,
    connections: int,
    seconds: int,
) -> OverloadFigures:
    """Offer three times the capacity in an open loop, each request with a deadline.

    The capacity is that of a closed load, the mean of one before and one after: a machine does not
    run at one speed.
    """
    usual = infer(bundle.network, "binary")
    before = closed(server, port, usual, connections=connections, seconds=seconds)
    request = infer(bundle.network, "binary", timeout_us=int(timeout_ms * 1e3))
    load = OpenLoad(
        rps=before.rps * OVERLOAD,
        seconds=seconds + WARM_UP_S,
        warm_up_s=WARM_UP_S,
        timeout_s=timeout_ms / 1e3,
    )
    result = offer(port, request.encode(), load)
    after = closed(server, port, usual, connections=connections, seconds=seconds)
    capacity_rps = (before.rps + after.rps) / 2
    return OverloadFigures(
        capacity_rps=capacity_rps,
        offered_rps=load.rps,
        timeout_ms=timeout_ms,
        goodput_share=result.goodput_rps / capacity_rps,
        result=result,
    )


def batch_counts(port: int) -> tuple[float, float]:
    """Items and batches that the agent's server has run so far, by its own metrics.

    Raises:
        ServerFailed: the server tells no metrics.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        raise ServerFailed(f"no metrics: {error}") from error
    sums = {"sum": 0.0, "count": 0.0}
    for line in lines:
        name = line.partition("{")[0].removeprefix("skerry_batch_items_")
        if name in sums:
            sums[name] += float(line.rpartition(" ")[2])
    return sums["sum"], sums["count"]
