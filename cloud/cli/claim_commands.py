"""`skerry claims`: the right to enrol a device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption, LabelOption, parse_labels
from cloud.cli.output import as_json, console, table, when
from cloud.errors import UserError
from cloud.services import write_secret
from fleet.client.schemas import ClaimIn

claims = typer.Typer(no_args_is_help=True, help="Claims: the right to enrol one device.")


@claims.command("create")
def create_claims(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for one claim; directory for several.")
    ],
    profile: Annotated[
        str,
        typer.Option(help="Hardware profile that the claim is bound to; a known device has one."),
    ] = "",
    label: LabelOption = None,
    count: Annotated[int, typer.Option(min=1, max=10000)] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="Hours until it expires.")] = 24.0,
    batch: Annotated[
        str, typer.Option(help="Name under which they are listed and revoked together.")
    ] = "",
    device: Annotated[
        str,
        typer.Option(help="The only name that it enrols; a revoked device comes back by it."),
    ] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Write claim files; each lets one device enrol once.  Treat them as secrets."""
    request = ClaimIn(
        profile=profile,
        labels=parse_labels(label),
        ttl_s=hours * 3600,
        count=count,
        batch=batch or None,
        device=device or None,
    )
    with client(directory) as api:
        files = api.create_claims(request)
    for claim in files:
        path = output if count == 1 else output / f"{claim.claim_id}.json"
        write_secret(path, claim.model_dump_json(indent=2))
        console.print(f"wrote {path}", soft_wrap=True)


@claims.command("list")
def list_claims(
    batch: Annotated[str, typer.Option(help="Only this batch.")] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Newest first."""
    with client(directory) as api:
        rows = api.claims(batch)
    if json:
        as_json(rows)
        return
    now = time.time()
    table(
        "claims",
        ("id", "profile", "batch", "for", "state", "expires"),
        [
            (
                c.id, c.profile, c.batch or "–", c.device or "any",
                f"used by {c.used_by}" if c.used_by else "revoked" if c.revoked
                else "expired" if c.expires_at < now else "open",
                when(c.expires_at),
            )
            for c in rows
        ],
    )  # fmt: skip


@claims.command("revoke")
def revoke_claim(
    claim_id: Annotated[str, typer.Argument(help="One claim; or name a batch.")] = "",
    batch: Annotated[str, typer.Option(help="All that is open of a batch.")] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Make claims worthless; devices that used them already stay."""
    if bool(claim_id) == bool(batch):
        raise UserError("name either a claim or a batch; see 'skerry claims list'")
    with client(directory) as api:
        if batch:
            count = api.revoke_claims(batch).revoked
            console.print(f"revoked {count} open claims of batch {batch}")
        else:
            api.revoke_claim(claim_id)
            console.print(f"revoked {claim_id}")
