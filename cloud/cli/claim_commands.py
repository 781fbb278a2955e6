"""`skerry claims`: the right to enrol a device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption, LabelOption, parse_labels
from cloud.cli.output import as_json, console, table, when
from cloud.services import write_secret
from fleet.client.schemas import ClaimIn

claims = typer.Typer(no_args_is_help=True, help="Claims: the right to enrol one device.")


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
