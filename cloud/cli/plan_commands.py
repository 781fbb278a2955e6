"""`skerry plan`: which hardware carries a rate, and how many devices of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.output import as_json, console, table
from cloud.cli.profile_commands import DASH, ProfilesOption
from cloud.errors import UserError
from optimizer.planner import BALANCER_QPS, Demand, Plan, Planning
from optimizer.planner import plan as plan_devices
from optimizer.profiles import PROFILE_DIRECTORY, list_profiles, load_profile
from optimizer.rates import Replica, of_report, of_stored
from optimizer.report import read_report

EVERY: Final = ""
"""Stands for every profile that is not named itself."""


def plan(
    qps: Annotated[float, typer.Option(help="Single items a second, arriving at random.")],
    model: Annotated[
        str, typer.Option(help="MODEL:VERSION of the registry: its selected variants.")
    ] = "",
    report: Annotated[
        Path | None, typer.Option(help="JSON report of the optimizer: its selected variants.")
    ] = None,
    cost_us: Annotated[
        list[str] | None,
        typer.Option(help="[PROFILE=]A,B: a batch of n takes A·n + B µs; repeatable."),
    ] = None,
    memory_mib: Annotated[
        list[str] | None,
        typer.Option(help="[PROFILE=]M: memory of one process with the model; repeatable."),
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Bound that the percentile of the latency must keep.")
    ] = None,
    percentile: Annotated[float, typer.Option(help="Share of requests within it.")] = 0.99,
    budget_usd: Annotated[float | None, typer.Option(help="For all devices.")] = None,
    power_w: Annotated[float | None, typer.Option(help="Of all devices.")] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Only this hardware profile; repeatable.")
    ] = None,
    balancer_qps: Annotated[
        float, typer.Option(help="Requests a second that one balancer carries.")
    ] = BALANCER_QPS,
    profiles: ProfilesOption = PROFILE_DIRECTORY,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Rank hardware and numbers of devices that carry a rate.

    Exit code 1: none surely keeps every limit.
    """
    demand = Demand(
        qps=qps,
        latency_ms=latency_ms,
        percentile=percentile,
        budget_usd=budget_usd,
        power_w=power_w,
        balancer_qps=balancer_qps,
    )
    if not profiles.is_dir():
        raise UserError(f"{profiles} is no directory of profiles")
    known = list_profiles(profiles)
    wanted = [load_profile(name, profiles) for name in profile or known]
    if sum((bool(model), report is not None, bool(cost_us))) != 1:
        raise UserError("say what the model costs: one of --model, --report and --cost-us")
    memories = {name: _memory(text) for name, text in _named(memory_mib, "--memory-mib", known)}
    if model:
        found = _of_registry(model, directory)
    elif report is not None:
        found = of_report(read_report(report))
    else:
        costs = {name: _cost(text) for name, text in _named(cost_us, "--cost-us", known)}
        found = {
            each.name: Replica(origin="given", service_ms=costs[key])
            for each in wanted
            if (key := each.name if each.name in costs else EVERY) in costs
        }
    found = {name: _with_memory(name, replica, memories) for name, replica in found.items()}
    planning = plan_devices(wanted, found, demand)
    if json:
        as_json(planning)
    else:
        _print(planning, one_cost=any("=" not in text for text in cost_us or ()))
    if not any(plan.within for plan in (*planning.ranked, *planning.unpriced)):
        raise typer.Exit(1)


# ── what the model costs ─────────────────────────────────────────────────────────────────────────


def _of_registry(version: str, directory: Path) -> dict[str, Replica]:
    model, number = split_version(version)
    with client(directory) as api:
        detail = api.model(model, number)
    found = {}
    for variant in detail.variants:
        if variant.selected:
            replica = of_stored(
                variant.name, variant.runtime, variant.measurement, predicted=variant.predicted
            )
            if replica is not None:
                found[variant.profile] = replica
    return found


def _named(texts: Sequence[str] | None, option: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """["a=1", "2"] → [("a", "1"), (EVERY, "2")]."""
    pairs = []
    for text in texts or ():
        name, separator, value = text.rpartition("=")
        if separator and name not in known:
            raise UserError(f"{option} {text}: no hardware profile '{name}'")
        pairs.append((name, value))
    if len(dict(pairs)) != len(pairs):
        raise UserError(f"{option} is given twice for the same profile")
    return pairs


def _cost(text: str) -> float:
    """ "9000,1000" → 10.0 ms for a single item."""
    try:
        per_item, fixed = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--cost-us {text!r} is not A,B: two numbers of microseconds, such as 900,150"
        ) from None
    if not (per_item >= 0 and fixed >= 0 and 0 < per_item + fixed < float("inf")):
        raise UserError(f"--cost-us {text}: neither may be negative, and not both nothing")
    return (per_item + fixed) / 1e3


def _memory(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--memory-mib {text!r} is not a number of MiB") from None
    if not 0 < value < float("inf"):
        raise UserError(f"--memory-mib {text} must be positive")
    return value


def _with_memory(name: str, replica: Replica, memories: dict[str, float]) -> Replica:
    given = memories.get(name, memories.get(EVERY))
    return replica if given is None else replica.model_copy(update={"memory_mib": given})


# ── how it looks ─────────────────────────────────────────────────────────────────────────────────


def _print(planning: Planning, *, one_cost: bool) -> None:
    demand = planning.demand
    columns = (
        "hardware", "devices", "replicas each", "holds", "headroom", "price", "power", "exceeds",
        "one device more", "figures",
    )  # fmt: skip
    title = f"{demand.qps:g} requests a second"
    if demand.latency_ms is not None:
        title += f", p{demand.percentile * 100:g} within {demand.latency_ms:g} ms"
    table(f"{title}, best first", columns, [_row(plan) for plan in planning.ranked])
    if planning.unpriced:
        table("without a price", columns, [_row(plan) for plan in planning.unpriced])
    for plan in planning.ranked:
        if plan.over and plan.affordable is not None:
            most = plan.affordable
            _say(
                f"{plan.profile}: over the limit of {' and '.join(plan.over)}; "
                + (
                    f"within it, {most.qps:,.0f} requests/s by {_devices(most.devices)}"
                    if most.devices
                    else "not one is within it"
                )
            )
    shown = [*planning.ranked, *planning.unpriced]
    for note in dict.fromkeys(
        f"{plan.profile}: {note}" for plan in shown for note in plan.replica.notes
    ):
        _say(note)
    if one_cost:
        _say("a cost without a profile is taken for all others, however fast they are")
    _say_unplanned(planning)
    if shown:
        _say_rates(shown[0])
        _say_balancer(planning, shown[0])


def _row(plan: Plan) -> tuple[object, ...]:
    nothing_more = plan.steps[-2]
    extra = "" if plan.price_usd is None else f" for {_usd(plan.price_usd / plan.devices)}"
    year = " a year" if plan.price_for == "year" else ""
    return (
        plan.profile,
        plan.devices,
        f"{plan.replicas} ({plan.bound_by})",
        f"{plan.qps:,.0f}/s",
        f"{plan.headroom:.0%}",
        DASH if plan.price_usd is None else _usd(plan.price_usd) + year,
        DASH if plan.power_w is None else f"{plan.power_w:,.0f} W",
        ", ".join([*plan.over, *(f"{name} unknown" for name in plan.unknown)]) or "nothing",
        f"{nothing_more.qps:,.0f}/s{extra}",
        f"{plan.replica.origin} {plan.replica.variant}".rstrip(),
    )


def _say_unplanned(planning: Planning) -> None:
    """Profiles without a plan, together where they share the reason."""
    reasons: dict[str, list[str]] = {}
    for each in planning.unplanned:
        reasons.setdefault(each.reason, []).append(each.profile)
    for reason, names in reasons.items():
        _say(f"not planned ({reason}): {', '.join(names)}")


def _say_rates(plan: Plan) -> None:
    _say(
        f"{plan.profile}: one device holds {plan.device_qps:,.1f}/s by {plan.rate_from}; "
        f"a request alone takes {plan.replica.service_ms:.3g} ms; requests are not batched"
    )
    steps = "; ".join(
        f"{step.devices} → {step.qps:,.0f}/s"
        + ("" if step.price_usd is None else f", {_usd(step.price_usd)}")
        for step in plan.steps
    )
    _say(f"{plan.profile} by the number of devices: {steps}")


def _say_balancer(planning: Planning, best: Plan) -> None:
    count, demand = planning.balancers(best), planning.demand
    if count == 0:
        _say("one device needs no balancer")
        return
    stated = (
        "assumed, see optimizer/planner.py" if demand.balancer_qps == BALANCER_QPS else "as given"
    )
    _say(
        f"{best.devices} devices need a balancer, which is in no price here; one carries "
        f"{demand.balancer_qps:,.0f} requests/s ({stated})"
    )
    if count > 1:
        _say(f"the balancer is the bottleneck at {demand.qps:g} requests/s: {count} are needed")


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _usd(value: float) -> str:
    return f"${value:,.0f}"


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
