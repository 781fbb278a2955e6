"""`skerry simulate`: fleets that do not exist, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.live import Live
from rich.table import Table

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import LabelOption, parse_labels
from cloud.cli.output import console, errors, table
from fleet.client.client import Client
from fleet.client.gateway_schemas import MAX_AT_ONCE, BelowIn
from fleet.simulate.fleet import Fleet, Snapshot, loop_factory, rss_mib, sources_of
from fleet.simulate.gateway import GatewayFleet
from fleet.simulate.identities import Membership, identities, shares
from fleet.simulate.line import Trust
from fleet.simulate.models import Behaviour, VersionModel
from fleet.simulate.montecarlo import VERSIONS, measure
from fleet.simulate.standing import Broker

simulate = typer.Typer(no_args_is_help=True, help="Fleets that do not exist, on real sockets.")

LIVE_S = 0.5
PLAIN_S = 5.0
"""Seconds between two lines where no terminal shows a table."""

CountOption = Annotated[int, typer.Option(min=1, max=1_000_000)]
ProfilesOption = Annotated[
    str, typer.Option(help="Profiles with weights: raspberry-pi-5=3,intel-n100=1.")
]
PrefixOption = Annotated[str, typer.Option(help="Of the devices' names.")]
KeepOption = Annotated[
    Path | None,
    typer.Option("--keep", help="Directory of keys and certificates, used again next time."),
]
SecondsOption = Annotated[
    float | None, typer.Option("--seconds", min=0.1, help="End after so long; else by Ctrl-C.")
]


def parse_profiles(text: str) -> dict[str, float]:
    """ "a=3,b" → {"a": 3.0, "b": 1.0}.

    Raises:
        typer.BadParameter: not of that form.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise typer.BadParameter(f"profile {part!r} is not NAME or NAME=WEIGHT") from None
        if not name or not weights[name] > 0:
            raise typer.BadParameter(f"profile {part!r} is not NAME or NAME=WEIGHT")
    return weights


@simulate.command("devices")
def devices(
    count: CountOption = 100,
    profiles: ProfilesOption = "this-machine",
    prefix: PrefixOption = "sim",
    label: LabelOption = None,
    seed: Annotated[int, typer.Option(help="Devices behave alike with the same seed.")] = 0,
    fast: Annotated[float, typer.Option(min=0.01, help="Updates so many times as fast.")] = 1.0,
    churn: Annotated[float, typer.Option(min=0, help="Share that goes away in a minute.")] = 0.0,
    clock_skew: Annotated[float, typer.Option(min=0, help="Seconds, standard deviation.")] = 0.0,
    failures: Annotated[
        float, typer.Option(min=0, max=1, help="Share of updates that fail in the download.")
    ] = 0.0,
    metrics: Annotated[float, typer.Option(min=0, help="Seconds between reports; 0: none.")] = 30.0,
    bad_version: Annotated[
        int | None, typer.Option(help="A version that is worse, as the next options say.")
    ] = None,
    bad_selftest: Annotated[
        float, typer.Option(min=0, max=1, help="Share of devices where its self-test fails.")
    ] = 0.3,
    bad_p99: Annotated[float, typer.Option(min=0.1, help="Factor on its p99 latency.")] = 1.3,
    bad_errors: Annotated[float, typer.Option(min=0, max=1, help="Its share of errors.")] = 0.05,
    bad_memory: Annotated[float, typer.Option(min=0, help="MiB that it takes more.")] = 0.0,
    bad_profile: Annotated[
        list[str] | None, typer.Option(help="Where it is worse; everywhere if left out.")
    ] = None,
    keep: KeepOption = None,
    seconds: SecondsOption = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Run COUNT devices, each on a connection of its own, until Ctrl-C.

    They enrol by claims as real devices do; their keys stay in DIRECTORY/simulated.  They follow
    desired twins and report, but download and verify nothing.
    """
    versions = {}
    if bad_version is not None:
        versions[bad_version] = VersionModel(
            selftest_failure=bad_selftest,
            p99_factor=bad_p99,
            error_rate=bad_errors,
            extra_mib=bad_memory,
            profiles=frozenset(bad_profile or ()),
        )
    behaviour = Behaviour(
        failures={"downloading": failures},
        versions=versions,
        churn_per_minute=churn,
        clock_skew_s=clock_skew,
        metrics_interval_s=metrics,
    ).faster(fast)
    names = shares(count, parse_profiles(profiles))
    labels = {"simulated": "yes", **parse_labels(label)}
    with client(directory) as api:
        membership = _enrolled(api, keep or directory / "simulated", names, prefix, labels)
    _until_stopped(
        lambda broker: Fleet(membership.members, broker, behaviour, seed=seed), membership, seconds
    )


@simulate.command("gateways")
def gateways(
    count: Annotated[int, typer.Option(min=1, max=1000, help="Gateways.")] = 10,
    each: Annotated[int, typer.Option(min=1, max=20_000, help="Devices below each.")] = 100,
    profile: Annotated[str, typer.Option(help="Of gateways and devices.")] = "this-machine",
    prefix: PrefixOption = "sim-gateway",
    label: LabelOption = None,
    seed: Annotated[int, typer.Option(help="Devices behave alike with the same seed.")] = 0,
    fast: Annotated[float, typer.Option(min=0.01, help="Updates so many times as fast.")] = 1.0,
    metrics: Annotated[float, typer.Option(min=0, help="Seconds between reports; 0: none.")] = 0.0,
    keep: KeepOption = None,
    seconds: SecondsOption = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Run COUNT gateways with EACH devices below every one, until Ctrl-C.

    A gateway enrols by a claim; the devices below it are registered, and have no connection of
    their own: a hundred thousand fit on a hundred connections.
    """
    behaviour = Behaviour(metrics_interval_s=metrics).faster(fast)
    labels = {"simulated": "yes", **parse_labels(label)}
    with client(directory) as api:
        place = keep or directory / "simulated-gateways"
        membership = _enrolled(api, place, [profile] * count, prefix, labels)
        below = {
            member.device_id: [f"{member.device_id}-{number:05d}" for number in range(each)]
            for member in membership.members
        }
        for gateway, names in below.items():
            for first in range(0, each, MAX_AT_ONCE):
                some = names[first : first + MAX_AT_ONCE]
                request = BelowIn(devices=some, profile=profile, labels=labels)
                api.register_below(gateway, request)
    _until_stopped(
        lambda broker: GatewayFleet(membership.members, below, broker, behaviour, seed=seed),
        membership,
        seconds,
    )


@simulate.command("virtual")
def virtual(
    version: Annotated[
        str, typer.Option(help=f"One of: {'; '.join(VERSIONS)}.")
    ] = "failures +5 points",
    rollouts: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    offline: Annotated[float, typer.Option(min=0, max=0.9, help="Share that is away.")] = 0.0,
    seed: int = 0,
) -> None:
    """Roll a version out many times on a virtual clock: is it stopped, and in which wave?

    No broker and no database: what decides is the rollout machine with its gates alone.
    """
    if version not in VERSIONS:
        raise typer.BadParameter(f"{version!r} is none of {', '.join(map(repr, VERSIONS))}")
    found = measure(version, rollouts, offline=offline, seed=seed)
    table(
        f"{version}, {rollouts} rollouts",
        ("what", "rollouts"),
        [
            ("halted in the first wave", found.halted_first),
            ("halted, or left to a person", found.stopped),
            ("completed", found.completed),
        ],
    )
    for reason in found.reasons[:1]:
        console.print(f"for example: {reason}", markup=False)


def _enrolled(
    api: Client, directory: Path, profiles: list[str], prefix: str, labels: dict[str, str]
) -> Membership:
    told_at = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told_at
        if done == of or time.monotonic() - told_at > PLAIN_S:
            told_at = time.monotonic()
            errors.print(f"{done} of {of} devices enrolled", markup=False)

    return identities(api, directory, profiles, prefix=prefix, labels=labels, progress=tell)


class Simulation(Protocol):
    """What is run: a fleet, or gateways."""

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    def snapshot(self) -> Snapshot: ...


def _until_stopped(
    make: Callable[[Broker], Simulation], membership: Membership, seconds: float | None
) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(make, membership, seconds))


async def _run(
    make: Callable[[Broker], Simulation], membership: Membership, seconds: float | None
) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    sources = sources_of(membership.host, len(membership.members))
    broker = Broker(membership.host, membership.port, Trust(membership.ca), sources=sources)
    simulation = make(broker)
    simulation.start()
    try:
        await _show(simulation, stop, seconds)
    finally:
        errors.print("the devices leave", markup=False)
        await simulation.stop()


async def _show(fleet: Simulation, stop: asyncio.Event, seconds: float | None) -> None:
    """Show what the devices are at until `stop`, or for so long."""
    until = None if seconds is None else time.monotonic() + seconds
    every_s = LIVE_S if console.is_terminal else PLAIN_S
    with Live(console=console, auto_refresh=False) as shown:
        while not stop.is_set():
            left_s = every_s if until is None else min(every_s, until - time.monotonic())
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await stop.wait()
            if console.is_terminal:
                shown.update(_table(fleet.snapshot()), refresh=True)
            else:
                errors.print(_line(fleet.snapshot()), markup=False, soft_wrap=True)


def _table(now: Snapshot) -> Table:
    rows = Table(show_header=False, box=None, pad_edge=False)
    rows.add_row("connected", f"{now.counts.up} of {now.lines}")
    rows.add_row(
        "lines",
        f"{now.counts.connects} came up, {now.counts.lost} broke, {now.counts.went_away} went "
        f"away, {now.counts.failures} failed",
    )
    if now.counts.last_failure:
        rows.add_row("last fault", now.counts.last_failure[:90])
    for (model, version), devices in sorted(now.versions.items()):
        rows.add_row(f"{model}:{version}", f"{devices} devices")
    rows.add_row("under way", _counted(now.phases) or "nothing")
    rows.add_row("ended", _counted(now.ended) or "nothing")
    rows.add_row("journals", f"{now.waiting} wait, {now.resent} sent again")
    rows.add_row("memory", f"{rss_mib():.0f} MiB, all devices together")
    return rows


def _line(now: Snapshot) -> str:
    versions = ", ".join(f"{m}:{v} on {n}" for (m, v), n in sorted(now.versions.items()))
    parts = [f"{now.counts.up} of {now.lines} connected", versions, _counted(now.phases)]
    if now.waiting:
        parts.append(f"{now.waiting} messages wait")
    if now.counts.up < now.lines and now.counts.last_failure:
        parts.append(f"last fault: {now.counts.last_failure}")
    return "; ".join(part for part in parts if part)


def _counted(phases: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
