"""`skerry parity`: whether a version answers the same in the cloud, on a device, in any batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.output import as_json, console, table

if TYPE_CHECKING:
    from cloud.parity import Comparison, DeviceAddress, Finding, Report

EXIT_CODES = {"PARITY": 0, "DIFFERS": 1, "INCONCLUSIVE": 2}
COLOURS = {"PARITY": "green", "DIFFERS": "red", "INCONCLUSIVE": "yellow"}


def parity(
    model: Annotated[str, typer.Argument(help="MODEL, or MODEL:VERSION.")],
    version: Annotated[
        int | None,
        typer.Option(min=1, help="Left out: what the device serves, else the champion."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Left out: the device's, or the only one.")] = "",
    device: Annotated[str, typer.Option(help="Address of a device, http://HOST:PORT.")] = "",
    socket: Annotated[
        Path | None, typer.Option(help="Administrative socket of an agent on this machine.")
    ] = None,
    agent: Annotated[
        Path | None, typer.Option(help="Directory of an agent that runs on this machine.")
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="SKERRY_DEVICE_TOKEN", help="The device's token, if it wants one.")
    ] = "",
    inputs: Annotated[
        list[str] | None,
        typer.Option(help="Beside the golden inputs: a .npz, or a dataset version; repeatable."),
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,3,8",
    atol: Annotated[
        float | None, typer.Option(min=0, help="Left out: that of the known answers.")
    ] = None,
    rtol: Annotated[float, typer.Option(min=0, help="Share of the value, added to atol.")] = 0.0,
    limit: Annotated[int, typer.Option(min=1, max=4096, help="Most items.")] = 256,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Compare a version step by step: batches with single items, and a device with the cloud.

    Exit code 0: parity; 1: it differs; 2: nothing can be said.
    """
    from cloud.parity import Device, Question, examine  # with the rooms that run pipelines

    if ":" in model:
        model, named = split_version(model)
        if version not in (None, named):
            raise typer.BadParameter(f"two versions are named, {named} and {version}")
        version = named
    question = Question(
        model, version, profile, tuple(inputs or ()), _sizes(batches), limit,
        _finite("--atol", atol), _finite("--rtol", rtol) or 0.0,
    )  # fmt: skip
    address = _address(device, socket, agent)
    with client(directory) as api:
        if address is None:
            report = examine(question, api)
        else:
            with Device(address, token=token) as there:
                report = examine(question, api, there)
    if json:
        as_json(report)
    else:
        show(report)
    raise typer.Exit(EXIT_CODES[report.verdict])


def show(report: Report) -> None:
    """A report as tables."""
    console.print(
        f"[bold]{report.model}:{report.version}[/bold] {report.profile} {report.variant}, "
        f"{report.items} items, atol {report.atol:g}"
        + (f", rtol {report.rtol:g}" if report.rtol else "")
        + (f", device {report.device}" if report.device else ""),
        highlight=False,
    )
    table(
        "comparisons",
        ("against", "batch", "items", "verdict", "first step that differs", "max abs", "max rel",
         "share", "label flips"),
        [_row(each) for each in report.comparisons],
    )  # fmt: skip
    worst = next((each for each in report.comparisons if each.verdict == "DIFFERS"), None)
    if worst is not None:
        table(
            f"steps against {worst.against}, batch {worst.batch}",
            ("#", "step", "tensor", "differs", "max abs", "max rel", "share", "detail"),
            [
                (
                    finding.index, finding.step, finding.tensor, finding.differs or "–",
                    *_figures(finding), finding.detail,
                )
                for finding in worst.findings
            ],
        )  # fmt: skip
    for comparison in report.comparisons:
        for note in comparison.notes:
            _note(f"batch {comparison.batch} against {comparison.against}: {note}")
    for note in report.notes:
        _note(note)
    colour = COLOURS[report.verdict]
    console.print(f"[bold {colour}]{report.verdict}[/bold {colour}]")


def _note(text: str) -> None:
    console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)


def _row(each: Comparison) -> tuple[object, ...]:
    first = each.first
    items = f"{each.items}" + (f" ({each.refused} refused)" if each.refused else "")
    flips = "–" if each.label_flips is None else each.label_flips
    if first is None:
        return each.against, each.batch, items, each.verdict, "–", *_largest(each), "–", flips
    where = f"{first.index} {first.step}" + (f" ({first.tensor})" if first.tensor else "")
    kind = "" if first.differs == "values" else f": {first.differs}"
    return each.against, each.batch, items, each.verdict, where + kind, *_figures(first), flips


def _largest(comparison: Comparison) -> tuple[str, str]:
    """How far apart it is within the tolerance, over all steps."""
    absolute = [each.max_abs for each in comparison.findings if each.max_abs is not None]
    relative = [each.max_rel for each in comparison.findings if each.max_rel is not None]
    return (
        f"{max(absolute):.3g}" if absolute else "–",
        f"{max(relative):.3g}" if relative else "–",
    )


def _figures(finding: Finding) -> tuple[str, str, str]:
    return (
        "–" if finding.max_abs is None else f"{finding.max_abs:.3g}",
        "–" if finding.max_rel is None else f"{finding.max_rel:.3g}",
        f"{finding.share:.1%}" if finding.differs else "–",
    )


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or not all(1 <= size <= 4096 for size in sizes):
        raise typer.BadParameter(f"batches {text!r} are not sizes from 1 to 4096, e.g. 1,2,8")
    return sizes


def _finite(name: str, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{name} must be a number, not {value}")
    return value


def _address(url: str, socket: Path | None, agent: Path | None) -> DeviceAddress | None:
    from cloud.parity import DeviceAddress

    if sum((bool(url), socket is not None, agent is not None)) > 1:
        raise typer.BadParameter("name the device once: --device, --socket or --agent")
    if url:
        return DeviceAddress.of_url(url)
    if socket is not None:
        return DeviceAddress.of_socket(socket)
    return None if agent is None else DeviceAddress.of_directory(agent)
