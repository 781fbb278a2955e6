"""`skerry rollout`: a version to devices, wave by wave.

Exit codes of `start` and `watch`: 0 completed; 1 halted, cancelled or rolled back; 3 it needs a
person (only with `--stop-when-needed`); 2 for every error.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.options import JsonOption, LabelOption, parse_labels
from cloud.cli.output import as_json, console, errors, page_title, table, when
from cloud.cli.rollout_request import (
    as_share,
    both,
    check_query,
    check_window,
    parse_gates,
    parse_span,
    parse_start,
    parse_waves,
    read_file,
    write_file,
)
from cloud.cli.rollout_watch import NEEDS_A_PERSON, watch
from cloud.errors import UserError
from fleet.client.calls import RolloutAction
from fleet.client.rollout_schemas import ExplainOut, RolloutPlanOut
from fleet.client.schemas import RolloutDetail, RolloutIn
from fleet.rollouts.explain import span

rollout = typer.Typer(no_args_is_help=True, help="Rollouts in waves.")

NEEDS_A_PERSON_CODE = 3

WhatArgument = Annotated[
    str, typer.Argument(metavar="MODEL:VERSION|PLAN.yaml", help="A version, or a written plan.")
]
WaveOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Who is in a wave: 3 devices, 25% of those left, or a query; repeat in order."
    ),
]
SoakOption = Annotated[
    list[str] | None,
    typer.Option(help="How long a wave must hold (30s, 10m, 2h): for all, or once for each wave."),
]
QueryOption = Annotated[str, typer.Option("--query", "-q", help="Only devices that match.")]
WindowOption = Annotated[
    list[str] | None,
    typer.Option(help='When devices are offered the version, as in "Mon-Fri 22:00-05:00".'),
]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the audit.")]
OffsetOption = Annotated[int, typer.Option(min=0)]
LimitOption = Annotated[int, typer.Option(min=1, max=1000)]


def _request(
    what: WhatArgument,
    wave: WaveOption = None,
    soak: SoakOption = None,
    profile: Annotated[list[str] | None, typer.Option(help="Only these profiles.")] = None,
    label: LabelOption = None,
    query: QueryOption = "",
    group: Annotated[str, typer.Option(help="Only devices of this group.")] = "",
    probation: Annotated[str, typer.Option(help="How long a device must hold.")] = "10s",
    phase_timeout: Annotated[
        str, typer.Option(help="Longest time of a device in a phase.")
    ] = "300s",
    max_failure_rate: Annotated[float, typer.Option(help="Above 0, below 1.")] = 0.1,
    min_responders: Annotated[int, typer.Option(help="Fewer leave a wave to a person.")] = 1,
    gate: Annotated[
        list[str] | None,
        typer.Option(help="Another threshold, NAME=VALUE, as in max_p99_ratio=1.2; repeatable."),
    ] = None,
    start_at: Annotated[
        str, typer.Option(help="+2h, or a time with its zone: 2027-03-01T22:00+09:00.")
    ] = "",
    window: WindowOption = None,
    time_zone: Annotated[str, typer.Option(help="Whose clock the windows mean.")] = "UTC",
    needs_approval: Annotated[
        bool, typer.Option("--needs-approval", help="A second person must approve it.")
    ] = False,
    approve_each_wave: Annotated[
        bool, typer.Option("--approve-each-wave", help="And each wave before it is offered.")
    ] = False,
    on_failure: Annotated[
        Literal["rollback", "halt"], typer.Option(help="What a failed gate does.")
    ] = "rollback",
    mode: Annotated[
        Literal["replace", "ab", "shadow"],
        typer.Option(help="Replace the version before, or try it beside that one."),
    ] = "replace",
    share: Annotated[
        str, typer.Option(help="Of the requests that a version under trial gets.")
    ] = "10%",
) -> RolloutIn:
    """The request that options, or a file, describe."""
    if what.endswith((".yaml", ".yml")):
        return read_file(Path(what))
    model, number = split_version(what)
    return RolloutIn(
        model=model,
        version=number,
        profiles=profile or [],
        labels=parse_labels(label),
        query=check_query(both(query, group)) if query or group else "",
        waves=parse_waves(wave or ["100%"], soak or []),
        probation_s=parse_span(probation),
        phase_timeout_s=parse_span(phase_timeout),
        max_failure_rate=max_failure_rate,
        min_responders=min_responders,
        gates=parse_gates(gate or []),
        start_at=parse_start(start_at, time.time()) if start_at else 0.0,
        windows=[check_window(text) for text in window or []],
        time_zone=time_zone,
        needs_approval=needs_approval,
        approve_each_wave=approve_each_wave,
        on_failure=on_failure,
        mode=mode,
        share=as_share(share),
    )


def _with_request(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes a `request`: its options are those of `_request`, then its own."""
    shared = inspect.signature(_request, eval_str=True).parameters
    own = [
        each
        for each in inspect.signature(command, eval_str=True).parameters.values()
        if each.name != "request"
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in shared}
        if str(given["what"]).endswith((".yaml", ".yml")):
            for name, parameter in shared.items():
                if name != "what" and given[name] != parameter.default:
                    option = "--" + name.replace("_", "-")
                    raise UserError(f"{option} is not read beside a written plan; edit the plan")
        command(request=_request(**given), **values)

    parameters = [*shared.values(), *own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@rollout.command("plan")
@_with_request
def plan(
    request: RolloutIn,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan for 'start' to read.")
    ] = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Show what starting it would do now: waves, who is left out, what the gates can see."""
    with client(directory) as api:
        found = api.plan_rollout(request)
    if output is not None:
        write_file(output, request)
    if json:
        as_json(found)
        return
    _print_plan(found)
    if output is not None:
        console.print(f"written to {output}; start it with 'skerry rollout start {output}'")


@rollout.command("start")
@_with_request
def start(
    request: RolloutIn,
    wait: Annotated[bool, typer.Option(help="Watch until it ends.")] = True,
    stop_when_needed: Annotated[
        bool, typer.Option("--stop-when-needed", help="Leave with code 3 when it needs a person.")
    ] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Bring a published version to devices, wave by wave."""
    with client(directory) as api:
        detail = api.start_rollout(request)
        if not json:
            console.print(f"rollout {detail.id}: {detail.state}")
        elif not wait:
            as_json(detail)
        if wait:
            finish(watch(api, detail.id, json=json, stop_when_needed=stop_when_needed))


@rollout.command("watch")
def watch_rollout(
    rollout_id: str,
    stop_when_needed: Annotated[
        bool, typer.Option("--stop-when-needed", help="Leave with code 3 when it needs a person.")
    ] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Follow a rollout until it ends; exit code 1 unless it completed."""
    with client(directory) as api:
        finish(watch(api, rollout_id, json=json, stop_when_needed=stop_when_needed))


@rollout.command("list")
def list_rollouts(
    model: Annotated[str, typer.Option(help="Only rollouts of this model.")] = "",
    state: Annotated[str, typer.Option(help="Only rollouts in this state, e.g. running.")] = "",
    offset: OffsetOption = 0,
    limit: LimitOption = 100,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Newest first."""
    with client(directory) as api:
        page = api.rollouts(model=model, state=state, offset=offset, limit=limit)
    if json:
        as_json(page)
        return
    table(
        page_title("rollouts", page),
        ("id", "version", "state", "waves", "started", "by", "reason"),
        [
            (
                r.id, f"{r.model}:{r.version}", r.state,
                " ".join(str(w["state"]) for w in r.waves), when(r.created_at), r.created_by,
                r.reason,
            )
            for r in page.items
        ],
    )  # fmt: skip


@rollout.command("show")
def show_rollout(
    rollout_id: str,
    wave: Annotated[int | None, typer.Option(min=1, help="Only devices of this wave.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only devices that failed.")] = False,
    phase: Annotated[str, typer.Option(help="Only devices in this phase.")] = "",
    offset: OffsetOption = 0,
    limit: LimitOption = 100,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Waves, devices a page at a time, and the evidence of every gate."""
    with client(directory) as api:
        devices = api.rollout_assignments(
            rollout_id,
            wave=None if wave is None else wave - 1,
            phase=phase,
            failed=failed,
            offset=offset,
            limit=limit,
        )
        filtered = wave is not None or failed or bool(phase) or offset > 0
        detail = None if filtered else api.rollout(rollout_id)
    if json:
        as_json(detail if detail is not None else devices)
        return
    if detail is not None:
        _print_waves(detail)
    table(
        page_title("devices", devices),
        ("wave", "device", "phase", "reason", "detail"),
        [(a.wave + 1, a.device, a.phase, a.reason, a.detail) for a in devices.items],
    )
    if detail is not None:
        table(
            "gates",
            ("gate", "verdict", "reason"),
            [(g.gate, g.verdict, g.reason) for g in detail.gates],
        )


@rollout.command("explain")
def explain_rollout(
    rollout_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False
) -> None:
    """Say why a rollout is where it is, and what it waits for."""
    with client(directory) as api:
        found = api.explain_rollout(rollout_id)
    if json:
        as_json(found)
    else:
        _print_explanation(found)


@rollout.command("approve")
def approve(
    rollout_id: str,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Let a rollout start, or its next wave be offered; not by who created it."""
    _steer(rollout_id, "approve", reason, directory, json)


@rollout.command("pause")
def pause(
    rollout_id: str,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Offer nothing new; devices under way finish, and a failing wave still halts it."""
    _steer(rollout_id, "pause", reason, directory, json)


@rollout.command("resume")
def resume(
    rollout_id: str,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Go on; this accepts a wave that was inconclusive."""
    _steer(rollout_id, "resume", reason, directory, json)


@rollout.command("cancel")
def cancel(
    rollout_id: str,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Stop; what no device has begun to switch is taken back, the others keep the version."""
    _steer(rollout_id, "cancel", reason, directory, json)


@rollout.command("halt")
def halt(
    rollout_id: str,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Stop because something is wrong; what no device has begun to switch is taken back."""
    _steer(rollout_id, "halt", reason, directory, json)


@rollout.command("rollback")
def rollback(
    rollout_id: str,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Give every device what it had before, under new counters."""
    _steer(rollout_id, "rollback", reason, directory, json)


def _steer(
    rollout_id: str, action: RolloutAction, reason: str, directory: Path, json: bool
) -> None:
    with client(directory) as api:
        detail = api.steer_rollout(rollout_id, action, reason)
    if json:
        as_json(detail)
    else:
        console.print(f"rollout {rollout_id}: {detail.state}")


def finish(detail: RolloutDetail) -> None:
    """Leave with the code that the module names, and a line of why."""
    if detail.state == "COMPLETED":
        return
    errors.print(
        f"skerry: rollout {detail.id} {detail.state}: {detail.reason}", markup=False, soft_wrap=True
    )
    raise typer.Exit(NEEDS_A_PERSON_CODE if detail.state in NEEDS_A_PERSON else 1)


def _print_waves(detail: RolloutDetail) -> None:
    console.print(f"rollout {detail.id} {detail.model}:{detail.version} {detail.state}")
    if detail.reason:
        console.print(detail.reason, markup=False)
    table(
        "waves",
        ("wave", "size", "state", "healthy", "failed", "unreachable", "reason"),
        [
            (
                w["index"] + 1, w.get("what", ""), w["state"], f"{w['healthy']}/{w['devices']}",
                w["failed"], w["unreachable"], w["reason"],
            )
            for w in detail.waves
        ],
    )  # fmt: skip


def _print_plan(found: RolloutPlanOut) -> None:
    console.print(
        f"{found.model}:{found.version} to {found.devices} devices in {len(found.waves)} waves, "
        f"about {span(found.expected_s)}" + (", after an approval" if found.needs_approval else "")
    )
    table(
        "waves",
        ("wave", "size", "devices", "offline", "profiles", "starts", "soak", "its gates can see"),
        [
            (
                w.index + 1, w.what, w.devices, w.offline,
                ", ".join(f"{n} {profile}" for profile, n in w.profiles.items()),
                when(w.starts_at), span(w.soak_s), "; ".join(w.detects) or "–",
            )
            for w in found.waves
        ],
    )  # fmt: skip
    if found.excluded:
        table(
            "left out",
            ("devices", "why", "such as"),
            [(e.devices, e.reason, ", ".join(e.examples)) for e in found.excluded],
        )
    if found.newcomers:
        console.print("devices that come later join the last wave")
    for caution in found.cautions:
        console.print(f"take care: {caution}", markup=False)


def _print_explanation(found: ExplainOut) -> None:
    console.print(f"rollout {found.id}: {found.state}")
    console.print(found.headline, markup=False)
    if found.waits_for:
        console.print(f"It waits for {found.waits_for}.", markup=False)
    for line in found.lines:
        console.print(f"- {line}", markup=False)
    if found.held_up:
        of = f" (the first of {found.held_up_total})" if found.held_up_total > 50 else ""
        table(
            f"devices it waits for{of}",
            ("device", "phase", "for", "why"),
            [(h.device, h.phase, span(h.for_s), h.reason) for h in found.held_up],
        )
