"""What is run, in which order, and what each part finds.  Prints nothing but one line a step.

The floor and the agent are measured one after the other in the same run, so that their figures are
ratios on any machine; peers follow on request.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.loads import environments, measure, networks, peers, processes
from bench.loads.errors import BenchError, PeerUnavailable, ServerFailed
from bench.loads.measure import Figures, OverloadFigures, SwapFigures
from bench.loads.networks import CONV, IMAGE, MLP, TINY, Bundle, Network
from bench.loads.processes import ServerProcess
from bench.loads.requests import KINDS, Kind, infer

CONNECTIONS: Final = (1, 8, 32)
USUAL: Final = 8
"""Connections of the headline and of every comparison."""

LOADED: Final = (TINY, MLP, IMAGE)
SWAPPED: Final = (TINY, MLP)
OVERLOADED_MS: Final = ((CONV, 50.0), (MLP, 20.0))
"""Networks and the deadline of each request.  A few thousand requests a second take the generator
next to nothing; tens of thousands, as of the second, take it a good part of a core."""

_STARTS: Final = 3
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How long each step takes, in seconds.

    Attributes:
        short: fewer loads, and nothing is settled first: to see that all works, not for figures.
    """

    seconds: int = 5
    idle_seconds: float = 10.0
    short: bool = False

    @property
    def connections(self) -> tuple[int, ...]:
        return (USUAL,) if self.short else CONNECTIONS

    @property
    def loaded(self) -> tuple[Network, ...]:
        return (TINY,) if self.short else LOADED


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the agent's server.

    Attributes:
        import_seconds: from the interpreter's first line until everything is imported.
        start_seconds: from there until a loaded model is served.
    """

    import_seconds: float
    start_seconds: float


Load = tuple[str, Kind, int]
"""Network, kind of request, connections."""


@dataclass(slots=True)
class Found:
    """Everything that a run found.

    Attributes:
        session_run_us: bare `session.run` by network.
        sketch: the bare server by kind, tiny network, `USUAL` connections.
        batch_items: mean items of a batch under each binary load, from the server's metrics.
    """

    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    session_run_us: dict[str, float] = field(default_factory=dict)
    sketch: dict[Kind, Figures] = field(default_factory=dict)
    agent: dict[Load, Figures] = field(default_factory=dict)
    batch_items: dict[Load, float] = field(default_factory=dict)
    swaps: dict[str, SwapFigures] = field(default_factory=dict)
    overloads: dict[str, OverloadFigures] = field(default_factory=dict)
    idle_cpu_percent: float = 0.0
    starts: list[Start] = field(default_factory=list)

    def headline(self) -> dict[str, float | int]:
        """The figures by which the server is judged."""
        usual = self.agent[TINY.name, "binary", USUAL]
        return {
            "rps": round(usual.rps),
            "cpu_us_per_request": round(usual.cpu_us_per_request, 1),
            "p50_us": round(usual.p50_us),
            "p99_us": round(usual.p99_us),
            "pss_mb": round(
                max(f.pss_mb for load, f in self.agent.items() if load[0] == TINY.name), 1
            ),
            "idle_cpu_percent": round(self.idle_cpu_percent, 3),
            "start_seconds": round(statistics.median(s.start_seconds for s in self.starts), 3),
            "dropped_on_swap": sum(each.dropped for each in self.swaps.values()),
            "overhead_us_over_session_run": round(
                usual.cpu_us_per_request - self.session_run_us[TINY.name], 1
            ),
            **{
                f"goodput_share_{name}": round(each.goodput_share, 3)
                for name, each in self.overloads.items()
            },
            **{f"late_admitted_{name}": each.result.late for name, each in self.overloads.items()},
        }


@dataclass(frozen=True, slots=True)
class PeerFound:
    """One peer: its figures by kind, or why there are none."""

    peer: peers.Peer
    figures: dict[Kind, Figures]
    processes: int
    why_not: str = ""


def say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def run(settings: Settings, place: Path, tell: Callable[[str], None] = say) -> Found:
    """Measure the floor and the agent.

    Args:
        place: an empty directory.

    Raises:
        BenchError: a server or a load generator failed.
    """
    found = Found()
    bundles = {}
    for network in networks.NETWORKS:
        tell(f"{network.name}: {network.about}")
        pair = tuple(networks.write(place / network.name / str(n), network, n) for n in (1, 2))
        bundles[network.name] = (pair[0], pair[1])
        found.costs[network.name] = pair[0].cost.model_dump()
        found.session_run_us[network.name] = session_run_us(pair[0], settings.seconds / 2)
    tell("the floor")
    _floor(found, bundles[TINY.name][0], settings)
    for network in networks.NETWORKS:
        tell(f"the agent: {network.name}")
        _agent(found, network, bundles[network.name], settings, place)
    for _ in range(_STARTS - len(found.starts)):
        with agent(bundles[TINY.name], place) as (_, _, start):
            found.starts.append(start)
    return found


def compare(settings: Settings, place: Path, tell: Callable[[str], None] = say) -> list[PeerFound]:
    """Make the peers' environments, then load one after the other."""
    bundle = networks.write(place / "peers", TINY)
    cache = environments.cache_directory()
    pythons: dict[str, Path | PeerUnavailable] = {}
    for peer in peers.PEERS:
        if peer.pins not in pythons:
            tell(f"{peer.name}: its environment")
            try:
                pythons[peer.pins] = environments.environment(peer.pins, cache)
            except PeerUnavailable as error:
                pythons[peer.pins] = error
    found = []
    for peer in peers.PEERS:
        tell(f"{peer.name}")
        python = pythons[peer.pins]
        if isinstance(python, PeerUnavailable):
            found.append(PeerFound(peer, {}, 0, str(python)))
        else:
            found.append(_peer(peer, python, bundle, settings))
    return found


@contextlib.contextmanager
def agent(bundles: tuple[Bundle, ...], place: Path) -> Iterator[tuple[ServerProcess, int, Start]]:
    """The agent's server in a process of its own: the process, its port, its start.

    Raises:
        ServerFailed: it does not start, or answers wrongly.
    """
    first = bundles[0]
    command = [sys.executable, "-m", "bench.loads.agent", *(str(b.directory) for b in bundles)]
    journal = place / f"{first.network.name}.db"
    with processes.started("agent", [*command, "--journal", str(journal)], talks=True) as server:
        said = server.hear(_START_S)
        port = int(str(said["port"]))
        for kind in KINDS:
            measure.require_right(port, infer(first.network, kind), first.answer)
        start = Start(float(str(said["import_seconds"])), float(str(said["start_seconds"])))
        yield server, port, start


def session_run_us(bundle: Bundle, seconds: float) -> float:
    """Bare `session.run` of one item in a process of its own, in µs."""
    command = [sys.executable, "-m", "bench.loads.sketch", str(bundle.onnx_path)]
    command += ["--session", str(seconds)]
    with processes.started("session.run", command, talks=True) as server:
        return float(str(server.hear(_START_S)["session_run_us"]))


def _floor(found: Found, bundle: Bundle, settings: Settings) -> None:
    command = [sys.executable, "-m", "bench.loads.sketch", str(bundle.onnx_path), "--port", "0"]
    with processes.started("sketch", command, talks=True) as server:
        port = int(str(server.hear(_START_S)["port"]))
        for kind in KINDS:
            request = infer(bundle.network, kind)
            measure.require_right(port, request, bundle.answer)
            found.sketch[kind] = measure.closed(
                server, port, request, connections=USUAL, seconds=settings.seconds
            )


def _agent(
    found: Found,
    network: Network,
    bundles: tuple[Bundle, Bundle],
    settings: Settings,
    place: Path,
) -> None:
    with agent(bundles, place) as (server, port, start):
        if network is TINY:
            found.starts.append(start)
        if network is TINY and not settings.short:
            measure.settle(port, infer(network, "binary"), connections=USUAL)
        if network in settings.loaded:
            for kind in KINDS:
                for connections in settings.connections:
                    load = (network.name, kind, connections)
                    with _batches(found, load, port):
                        found.agent[load] = measure.closed(
                            server, port, infer(network, kind),
                            connections=connections, seconds=settings.seconds,
                        )  # fmt: skip
        if network is TINY:
            found.idle_cpu_percent = measure.idle_cpu_percent(
                server, port, infer(network, "binary"), settings.idle_seconds
            )
        for overloaded, timeout_ms in OVERLOADED_MS:
            if network is overloaded:
                found.overloads[network.name] = measure.overload(
                    server, port, bundles[0], timeout_ms=timeout_ms,
                    connections=CONNECTIONS[-1], seconds=settings.seconds,
                )  # fmt: skip
        if network in SWAPPED:
            found.swaps[network.name] = measure.swap(
                server, port, bundles, "binary", connections=USUAL, seconds=settings.seconds
            )


@contextlib.contextmanager
def _batches(found: Found, load: Load, port: int) -> Iterator[None]:
    """Note the mean batch of what runs inside."""
    items, batches = measure.batch_counts(port)
    yield
    items_after, batches_after = measure.batch_counts(port)
    if batches_after > batches:
        found.batch_items[load] = (items_after - items) / (batches_after - batches)


def _peer(peer: peers.Peer, python: Path, bundle: Bundle, settings: Settings) -> PeerFound:
    figures: dict[Kind, Figures] = {}
    try:
        with peers.serving(peer, python, bundle) as (server, port):
            for kind in peer.kinds:
                figures[kind] = measure.closed(
                    server, port, peer.request(kind), connections=USUAL, seconds=settings.seconds
                )
                if figures[kind].faults:
                    raise ServerFailed(f"{peer.name}: {figures[kind].faults} requests failed")
            return PeerFound(peer, figures, len(server.tree()))
    except BenchError as error:
        return PeerFound(peer, {}, 0, str(error))
