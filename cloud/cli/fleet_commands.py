"""`skerry status|audit|claims|devices|rollout|tokens`: the fleet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.output import as_json, console, errors, table, when
from cloud.errors import UserError
from cloud.services import write_secret
from edge_agent.wire.ids import is_slug
from fleet.client.calls import RolloutAction
from fleet.client.schemas import ClaimIn, GroupIn, Role, RolloutDetail, RolloutIn, TokenIn, WaveIn

claims = typer.Typer(no_args_is_help=True, help="Claims: the right to enrol one device.")
devices = typer.Typer(no_args_is_help=True, help="The registry of devices.")
rollout = typer.Typer(no_args_is_help=True, help="Rollouts in waves.")
tokens = typer.Typer(no_args_is_help=True, help="API tokens.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, repeatable.")]

ROLLOUT_POLL_S = 0.5
ENDED = frozenset({"COMPLETED", "CANCELLED", "HALTED", "ROLLED_BACK"})


def parse_labels(pairs: list[str] | None) -> dict[str, str]:
    """["site=a"] → {"site": "a"}.

    Raises:
        typer.BadParameter: a pair without "=".
    """
    result = {}
    for pair in pairs or []:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"label {pair!r} is not KEY=VALUE")
        result[key] = value
    return result


def status(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """The control plane at a glance."""
    with client(directory) as api:
        overview = api.overview()
    if json:
        as_json(overview)
        return
    table("status", ("what", "value"), list(overview.model_dump().items()))


def audit(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """Who did what, newest first; hash-chained."""
    with client(directory) as api:
        rows = api.audit()
    if json:
        as_json(rows)
        return
    table(
        "audit",
        ("id", "at", "actor", "action", "subject"),
        [(r.id, when(r.at), r.actor, r.action, r.subject) for r in rows],
    )


# ── claims and devices ───────────────────────────────────────────────────────────────────────────


@claims.command("create")
def create_claims(
    profile: Annotated[str, typer.Option(help="Hardware profile that the claim is bound to.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for one claim; directory for several.")
    ],
    label: LabelOption = None,
    count: Annotated[int, typer.Option(min=1, max=10000)] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="Hours until it expires.")] = 24.0,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Write claim files; each lets one device enrol once.  Treat them as secrets."""
    request = ClaimIn(profile=profile, labels=parse_labels(label), ttl_s=hours * 3600, count=count)
    with client(directory) as api:
        files = api.create_claims(request)
    for claim in files:
        path = output if count == 1 else output / f"{claim.claim_id}.json"
        write_secret(path, claim.model_dump_json(indent=2))
        console.print(f"wrote {path}", soft_wrap=True)


@claims.command("list")
def list_claims(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """Newest first."""
    with client(directory) as api:
        rows = api.claims()
    if json:
        as_json(rows)
        return
    now = time.time()
    table(
        "claims",
        ("id", "profile", "state", "expires"),
        [
            (
                c.id, c.profile,
                "revoked" if c.revoked else f"used by {c.used_by}" if c.used_by
                else "expired" if c.expires_at < now else "open",
                when(c.expires_at),
            )
            for c in rows
        ],
    )  # fmt: skip


@claims.command("revoke")
def revoke_claim(claim_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Make a claim worthless; the device that used it already stays."""
    with client(directory) as api:
        api.revoke_claim(claim_id)
    console.print(f"revoked {claim_id}")


@devices.command("list")
def list_devices(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    search: str = "",
    profile: str = "",
    label: LabelOption = None,
    offset: int = 0,
    limit: int = 100,
    json: JsonOption = False,
) -> None:
    """One page of the registry."""
    with client(directory) as api:
        page = api.devices(
            offset=offset, limit=limit, search=search, labels=label or [], profile=profile
        )
    if json:
        as_json(page)
        return
    table(
        f"devices {page.offset + 1}–{page.offset + len(page.items)} of {page.total}",
        ("id", "profile", "state", "models", "last seen"),
        [
            (
                d.id, d.profile, "online" if d.online else "offline",
                ", ".join(f"{name}:{m['version']} {m['variant']}" for name, m in d.models.items()),
                when(d.last_seen),
            )
            for d in page.items
        ],
    )  # fmt: skip


@devices.command("show")
def show_device(device_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Twin, inventory and history of one device, as JSON."""
    with client(directory) as api:
        as_json(api.device(device_id))


@devices.command("assign")
def assign_together(
    device_id: str,
    versions: Annotated[
        list[str], typer.Argument(help="MODEL:VERSION of each model, two or more.")
    ],
    probation: Annotated[float, typer.Option(min=0, help="Seconds they must hold.")] = 10.0,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Have one device install versions of several models, all or none."""
    if not is_slug(device_id):
        raise UserError(f"{device_id[:100]!r} is no device's id; see 'skerry devices list'")
    wanted = dict(split_version(version) for version in versions)
    if len(wanted) != len(versions) or len(wanted) < 2:
        raise UserError("name two models or more, each once; start a rollout for one")
    with client(directory) as api:
        assigned = api.assign_together(device_id, GroupIn(versions=wanted, probation_s=probation))
    for each in assigned:
        console.print(f"{device_id}: {each.model}:{each.version} in group {each.group}")


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────────


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


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


@tokens.command("create")
def create_token(
    name: str,
    role: Annotated[Role, typer.Option(help="What the token may do.")] = "viewer",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Create an API token; it is shown once."""
    with client(directory) as api:
        console.print(api.create_token(TokenIn(name=name, role=role)).token)
