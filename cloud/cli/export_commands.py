"""`skerry export-bundle`: a directory, such as a USB stick, to install from without a line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.export_medium import write_medium
from cloud.cli.output import console, errors, table, when
from fleet.client.schemas import ExportIn

SHORT_LIFE_S = 48 * 3600.0


def export_bundle(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory to write; an earlier export is renewed."),
    ],
    device: Annotated[
        list[str], typer.Option("--device", help="Device to export for; repeatable.")
    ],
    model: Annotated[
        str, typer.Option(help="Only this model, with those of its group; all by default.")
    ] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Write what devices are assigned, to be installed by 'skerry-agent install --from'."""
    with client(directory) as api:
        made = api.export(ExportIn(devices=device, model=model))
        total = sum(blob.length for blob in made.blobs)
        with Progress(
            TextColumn("copying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            console=errors, transient=True, disable=not errors.is_terminal,
        ) as progress:  # fmt: skip
            task = progress.add_task("copying", total=total)
            write_medium(
                output,
                made,
                lambda blob, offset: api.export_blob(blob.target, blob.sha256, offset=offset),
                lambda count: progress.advance(task, count),
            )
    table(
        "exported",
        ("device", "model", "version"),
        [(each.device, each.model, each.version) for each in made.releases],
    )
    console.print(
        f"wrote {output}: {total / 2**20:.1f} MiB, installable until {when(made.expires_at)}",
        soft_wrap=True,
    )
    if made.expires_at - time.time() < SHORT_LIFE_S:
        errors.print("skerry: that is soon; signed metadata is due for renewal", markup=False)
    console.print(
        f"on the device: skerry-agent install --from {output} --dir DIRECTORY", soft_wrap=True
    )
