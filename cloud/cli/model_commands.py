"""`skerry models …`: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, page_title, table, when
from fleet.client.schemas import ModelDetail, PublishIn

models = typer.Typer(no_args_is_help=True, help="Versions, their candidates and gates.")

VersionArgument = Annotated[str, typer.Argument(help="MODEL:VERSION, e.g. digits:1")]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the history.")]


@models.command("list")
def list_models(
    model: Annotated[str, typer.Argument(help="Only versions of this model.")] = "",
    offset: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Versions of models, by name, newest version first."""
    with client(directory) as api:
        page = api.models(model=model, offset=offset, limit=limit)
    if json:
        as_json(page)
        return
    table(
        page_title("models", page),
        ("version", "state", "dataset", "code", "made"),
        [
            (f"{m.model}:{m.version}", m.state, m.dataset[:12], m.code_sha[:12], when(m.created_at))
            for m in page.items
        ],
    )


@models.command("show")
def show(
    version: VersionArgument,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """One version: candidates with verdict and reason, gates with their evidence."""
    model, number = split_version(version)
    with client(directory) as api:
        detail = api.model(model, number)
    if json:
        as_json(detail)
    else:
        print_detail(detail)


def print_detail(detail: ModelDetail) -> None:
    """A version as tables."""
    console.print(f"[bold]{detail.model}:{detail.version}[/bold] {detail.state}")
    table(
        "candidates",
        ("id", "profile", "variant", "verdict", "macro-F1", "p99 ms", "KiB", "reason"),
        [
            (
                v.id, v.profile, ("→ " if v.selected else "  ") + v.name,
                v.verdict + (" predicted" if v.predicted else ""),
                f"{v.accuracy.get('macro_f1', float('nan')):.4f}",
                f"{v.measurement.get('p99_ms') or float('nan'):.3f}",
                f"{v.bundle_length / 1024:.0f}", v.reason,
            )
            for v in detail.variants
        ],
    )  # fmt: skip
    table(
        "gates",
        ("gate", "verdict", "reason"),
        [(g.gate, g.verdict, g.reason) for g in detail.gates],
    )
    table(
        "releases",
        ("target", "sha256", "bytes", "state"),
        [
            (
                r["target"],
                r["bundle_sha"][:12],
                r["length"],
                "awaits signatures" if r.get("awaiting") else "signed",
            )
            for r in detail.releases
        ],
    )


@models.command("approve")
def approve(
    version: VersionArgument,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Approve a candidate for publication."""
    model, number = split_version(version)
    with client(directory) as api:
        console.print(f"{version} is {api.approve(model, number, reason).state}")


@models.command("reject")
def reject(
    version: VersionArgument,
    reason: ReasonOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Reject a candidate."""
    model, number = split_version(version)
    with client(directory) as api:
        console.print(f"{version} is {api.reject(model, number, reason).state}")


@models.command("publish")
def publish(
    version: VersionArgument,
    variant: Annotated[
        list[int] | None,
        typer.Option(help="Publish this candidate (its id) instead of the selected one."),
    ] = None,
    allow_predicted: Annotated[
        bool,
        typer.Option(
            "--allow-predicted",
            help="Publish variants too that were never measured on their profile.",
        ),
    ] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Sign and publish an approved version: one release for each profile."""
    model, number = split_version(version)
    with client(directory) as api:
        wanted = set(variant or ())
        chosen = {v.profile: v.id for v in api.model(model, number).variants if v.id in wanted}
        if unknown := wanted - set(chosen.values()):
            raise typer.BadParameter(
                f"{version} has no candidate {min(unknown)} of its own profile"
            )
        detail = api.publish(
            model, number, PublishIn(variants=chosen, allow_predicted=allow_predicted)
        )
    console.print(f"{version} is {detail.state}")
    for release in detail.releases:
        waits = "  awaits signatures" if release.get("awaiting") else ""
        console.print(f"  {release['target']}  {release['bundle_sha'][:12]}{waits}")
    if any(release.get("awaiting") for release in detail.releases):
        console.print("offline keys must sign; go on with 'skerry keys request -o request.json'")


@models.command("download")
def download(
    variant_id: int,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("candidate.bundle"),
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Save the bundle of any candidate."""
    with client(directory) as api:
        output.write_bytes(api.bundle(variant_id))
    console.print(f"wrote {output}")
