"""`skerry rollout`: a version to devices, wave by wave."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.options import JsonOption, LabelOption, parse_labels
from cloud.cli.output import as_json, console, errors, table, when
from fleet.client.calls import RolloutAction
from fleet.client.schemas import RolloutDetail, RolloutIn, WaveIn

rollout = typer.Typer(no_args_is_help=True, help="Rollouts in waves.")

ROLLOUT_POLL_S = 0.5
ENDED = frozenset({"COMPLETED", "CANCELLED", "HALTED", "ROLLED_BACK"})


def parse_wave(text: str, soak_s: float) -> WaveIn:
    """ "1" → one device, "25%" → a quarter of those left.

    Raises:
        typer.BadParameter: neither.
    """
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        if percent:
            return WaveIn(percent=float(number), soak_s=soak_s)
        return WaveIn(count=int(number), soak_s=soak_s)
    except ValueError:
        raise typer.BadParameter(
            f"wave {text!r} is neither a number of devices nor a percentage such as 25%"
        ) from None


@rollout.command("start")
def start(
    version: Annotated[str, typer.Argument(help="MODEL:VERSION")],
    wave: Annotated[
        list[str] | None, typer.Option(help="Size of a wave: 3 or 25%; repeat in order.")
    ] = None,
    soak: Annotated[float, typer.Option(min=0, help="Seconds a wave must hold.")] = 30.0,
    probation: Annotated[float, typer.Option(min=0, help="Seconds a device must hold.")] = 10.0,
    profile: Annotated[list[str] | None, typer.Option()] = None,
    label: LabelOption = None,
    max_failure_rate: Annotated[float, typer.Option(min=0.001, max=0.999)] = 0.1,
    min_responders: Annotated[int, typer.Option(min=1)] = 1,
    wait: Annotated[bool, typer.Option(help="Watch until it ends.")] = True,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Bring a published version to devices, wave by wave."""
    model, number = split_version(version)
    request = RolloutIn(
        model=model,
        version=number,
        profiles=profile or [],
        labels=parse_labels(label),
        waves=[parse_wave(text, soak) for text in wave or ["100%"]],
        probation_s=probation,
        max_failure_rate=max_failure_rate,
        min_responders=min_responders,
    )
    with client(directory) as api:
        detail = api.start_rollout(request)
    console.print(f"rollout {detail.id}: {detail.state}")
    if wait:
        watch(detail.id, directory)


@rollout.command("list")
def list_rollouts(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """Newest first."""
    with client(directory) as api:
        rows = api.rollouts()
    if json:
        as_json(rows)
        return
    table(
        "rollouts",
        ("id", "version", "state", "waves", "started", "reason"),
        [
            (
                r.id, f"{r.model}:{r.version}", r.state,
                " ".join(str(w["state"]) for w in r.waves), when(r.created_at), r.reason,
            )
            for r in rows
        ],
    )  # fmt: skip


@rollout.command("watch")
def watch(rollout_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Follow a rollout until it ends; exit code 1 unless it completed."""
    seen = ""
    with client(directory) as api:
        while True:
            detail = api.rollout(rollout_id)
            line = f"{detail.state}: " + ", ".join(
                f"wave {w['index'] + 1} {w['state']} ({w['healthy']}/{w['devices']} healthy, "
                f"{w['failed']} failed)"
                for w in detail.waves
            )
            if line != seen:
                console.print(line)
                seen = line
            if detail.state in ENDED:
                break
            time.sleep(ROLLOUT_POLL_S)
    if detail.state != "COMPLETED":
        errors.print(f"skerry: rollout {rollout_id} {detail.state}: {detail.reason}", markup=False)
        raise typer.Exit(1)


@rollout.command("show")
def show_rollout(
    rollout_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False
) -> None:
    """Waves, devices, and the evidence of every gate."""
    with client(directory) as api:
        detail = api.rollout(rollout_id)
    if json:
        as_json(detail)
    else:
        _print_rollout(detail)


def _print_rollout(detail: RolloutDetail) -> None:
    console.print(f"rollout {detail.id} {detail.model}:{detail.version} {detail.state}")
    table(
        "devices",
        ("wave", "device", "phase", "reason", "detail"),
        [
            (a["wave"] + 1, a["device"], a["phase"], a["reason"], a["detail"])
            for a in detail.assignments
        ],
    )
    table(
        "gates",
        ("gate", "verdict", "reason"),
        [(g.gate, g.verdict, g.reason) for g in detail.gates],
    )


@rollout.command("steer")
def steer_rollout(
    action: Annotated[RolloutAction, typer.Argument(help="What to do.")],
    rollout_id: str,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Steer a rollout."""
    with client(directory) as api:
        console.print(f"rollout {rollout_id}: {api.steer_rollout(rollout_id, action).state}")
