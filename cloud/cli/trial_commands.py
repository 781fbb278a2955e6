"""`skerry rollout share|trial|promote|drop`: a version that is tried beside the one that serves."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, table
from cloud.cli.rollout_commands import SoakOption, WaveOption, finish
from cloud.cli.rollout_request import as_share, parse_waves
from cloud.cli.rollout_watch import watch
from fleet.client.trial_schemas import PromoteIn, TrialOut, TrialSide


def share_trial(
    rollout_id: str,
    share: Annotated[str, typer.Argument(help="Of the requests, e.g. 25%.")],
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Have a trial answer, or compute, another share of the requests."""
    with client(directory) as api:
        trial = api.share_trial(rollout_id, as_share(share))
    console.print(f"trial {trial.rollout}: {trial.mode} {trial.share:.4g} of the requests")


def show_trial(
    rollout_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False
) -> None:
    """Both versions side by side, on the same devices."""
    with client(directory) as api:
        trial = api.trial(rollout_id)
    if json:
        as_json(trial)
    else:
        _print(trial)


def promote_trial(
    rollout_id: str,
    wave: WaveOption = None,
    soak: SoakOption = None,
    wait: Annotated[bool, typer.Option(help="Watch until it ends.")] = True,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Have a version that was tried with success take the place of the one that serves."""
    waves = parse_waves(wave or ["100%"], soak or [])
    with client(directory) as api:
        detail = api.promote_trial(rollout_id, PromoteIn(waves=waves))
        console.print(f"rollout {detail.id}: {detail.state}")
        if wait:
            finish(watch(api, detail.id, json=False, stop_when_needed=False))


def drop_trial(rollout_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """End a trial: the version that serves goes on alone."""
    with client(directory) as api:
        api.trial(rollout_id)  # anything else is rolled back by its own name
        console.print(f"rollout {rollout_id}: {api.steer_rollout(rollout_id, 'rollback').state}")


def register(rollout: typer.Typer) -> None:
    """Make these commands of `skerry rollout`."""
    rollout.command("share")(share_trial)
    rollout.command("trial")(show_trial)
    rollout.command("promote")(promote_trial)
    rollout.command("drop")(drop_trial)


def _print(trial: TrialOut) -> None:
    console.print(
        f"{trial.mode} {trial.model}:{trial.version}, {trial.share:.4g} of the requests, "
        f"on {trial.devices} devices, {trial.state}"
    )
    table(
        "versions",
        ("", "requests", "errors", "rejects", "corrections", "p99 ms"),
        [_row("serves", trial.champion), _row("is tried", trial.challenger)],
    )
    found = trial.differences
    if trial.mode == "shadow":
        console.print(
            f"{found.disagreed} of {found.compared} answers disagree; numbers differ by "
            f"{found.abs_mean:.4g} on average, {found.abs_max:.4g} at most; "
            f"{found.errors} failed, {found.shed} left out under load"
        )


def _row(name: str, side: TrialSide) -> tuple[object, ...]:
    p99 = "–" if side.latency_p99_us is None else f"{side.latency_p99_us / 1000:.2f}"
    return name, side.requests, side.errors, side.rejects, side.corrections, p99
