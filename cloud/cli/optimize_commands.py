"""`skerry optimize`: a search without a control plane, and why what it found was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import TypeAdapter

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, control_plane
from cloud.cli.optimize_output import print_result, search_progress
from cloud.cli.output import console, errors
from cloud.errors import UserError
from cloud.project import load_project
from cloud.standalone.output_directory import open_output
from cloud.standalone.project import search_project
from cloud.standalone.searching import Wishes, search_model
from edge_agent.wire.manifest import StepSpec
from optimizer.budget import Budget, MetricName
from optimizer.errors import did_you_mean
from optimizer.explain import explain
from optimizer.model_file import read_network
from optimizer.passes import find
from optimizer.profiles import THIS_MACHINE, load_profile
from optimizer.report import JSON_NAME, parse_report, read_report
from optimizer.task import OptimizeResult

BUDGET: Final = "Budget of an ONNX file"
DEFAULT_OUTPUT: Final = Path("optimized")

_METRIC: Final = TypeAdapter[MetricName](MetricName)


def optimize(
    target: Annotated[
        Path | None, typer.Argument(help="Directory with a skerry.yaml, or an ONNX file.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Receives bundles/, report.html, report.json, cache/."),
    ] = DEFAULT_OUTPUT,
    data: Annotated[
        Path | None,
        typer.Option(
            help="For an ONNX file: an .npz with the network's inputs by name, [rows, …] each, "
            "'labels' (class index of each row), and if wanted 'names' (one a class). Without "
            "labels the network's own answers in fp32 count as right."
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Hardware profile; repeatable. For a project: of those it has."),
    ] = None,
    recipes: Annotated[str, typer.Option(help="Names with commas between; all if left out.")] = "",
    recipe_code: Annotated[
        Path | None,
        typer.Option(help="For an ONNX file: Python that registers recipes of your own."),
    ] = None,
    quick: Annotated[
        bool | None,
        typer.Option("--quick/--full", help="Measure to choose by, or to quote. Default: full."),
    ] = None,
    time_limit_s: Annotated[
        float | None, typer.Option(help="Begin nothing more after that.", min=1.0)
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            metavar="device:ID|group:NAME",
            help="Measure on these lab devices of the control plane in --dir.",
        ),
    ] = "",
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Measure every point in full.")
    ] = False,
    latency_ms: Annotated[float | None, typer.Option(rich_help_panel=BUDGET)] = None,
    percentile: Annotated[
        float | None, typer.Option(rich_help_panel=BUDGET, help="Share of requests within it.")
    ] = None,
    qps: Annotated[
        float | None,
        typer.Option(rich_help_panel=BUDGET, help="Rate at which the latency must still hold."),
    ] = None,
    memory_mib: Annotated[float | None, typer.Option(rich_help_panel=BUDGET)] = None,
    artifact_kib: Annotated[float | None, typer.Option(rich_help_panel=BUDGET)] = None,
    max_drop_points: Annotated[
        float | None,
        typer.Option(rich_help_panel=BUDGET, help="Largest loss, in points of a percent."),
    ] = None,
    min_accuracy: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=BUDGET, help="Floor, such as macro_f1=0.9; repeatable."),
    ] = None,
    min_recall: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=BUDGET, help="Floor of a class, CLASS=0.8; repeatable."),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(rich_help_panel=BUDGET, help="Processes that must fit into the memory."),
    ] = None,
    prefer: Annotated[
        str,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="speed|accuracy",
            help="What decides among those that keep it.",
        ),
    ] = "",
    primary: Annotated[
        str,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="accuracy|macro_f1|balanced_accuracy",
            help="The metric that losses are counted in.",
        ),
    ] = "",
    network_output: Annotated[
        str, typer.Option(rich_help_panel=BUDGET, help="Output with the class scores.")
    ] = "",
    why: Annotated[
        str,
        typer.Option(
            "--explain",
            metavar="OUT|JOB",
            help="Say why the winner won, there or in that job.",
        ),
    ] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Find the fastest variant that honestly meets the budget of each hardware profile.

    Nothing needs to be running, unless --on names devices. Ctrl-C keeps what is finished: the same
    command goes on from there.

    Exit codes: 1 where a profile's budget is not met, 2 for bad input, 130 for Ctrl-C.
    """
    if why:
        if target is not None:
            raise typer.BadParameter("--explain says why; it takes no project and no model beside")
        _explain(why, profile or [], directory)
        return
    if target is None:
        raise typer.BadParameter("say what to optimise: a project's directory, or FILE.onnx")
    wishes = Wishes(
        profiles=tuple(profile or ()),
        recipes=tuple(StepSpec(name=name.strip()) for name in recipes.split(",") if name.strip()),
        quick=quick,
        exhaustive=exhaustive,
        time_limit_s=time_limit_s,
        on=on,
        plane=control_plane(directory) if on else None,
    )
    given = {
        "latency_ms": latency_ms,
        "percentile": percentile,
        "qps": qps,
        "memory_mib": memory_mib,
        "artifact_kib": artifact_kib,
        "max_accuracy_drop_points": max_drop_points,
        "min_accuracy": _floors(min_accuracy, "--min-accuracy"),
        "min_recall": _floors(min_recall, "--min-recall"),
        "replicas": replicas,
        "prefer": prefer or None,
    }
    budget = Budget.model_validate({name: v for name, v in given.items() if v not in (None, {})})
    with _kept(output):
        if target.is_dir():
            if data or recipe_code or primary or network_output or budget != Budget():
                raise UserError(
                    "data, metric, budgets and code of a project stand in its skerry.yaml"
                )
            result = _of_project(target, wishes, output)
        else:
            metric = _METRIC.validate_python(primary) if primary else None
            result = _of_model(
                target, data, budget, wishes, output, metric, network_output, recipe_code
            )
    print_result(result, output)
    if result.unmet:
        raise typer.Exit(1)


# ── the search ───────────────────────────────────────────────────────────────────────────────────


def _of_model(
    path: Path,
    data: Path | None,
    budget: Budget,
    wishes: Wishes,
    output: Path,
    primary: MetricName | None,
    network_output: str,
    recipe_code: Path | None,
) -> OptimizeResult:
    if not path.exists():
        raise UserError(f"{path}: no such file; name an ONNX file or a project's directory")
    if data is None:
        raise UserError(f"--data is missing: rows for {path.name} as an .npz; see --help")
    profiles = wishes.profiles or (THIS_MACHINE,)
    for name in profiles:
        load_profile(name)
    if recipe_code is None:
        for step in wishes.recipes:
            find(step.name)
    network = read_network(path, data, network_output)
    with open_output(output) as place, search_progress(path.name) as shown:
        return search_model(
            network,
            data,
            dict.fromkeys(profiles, budget),
            wishes,
            place,
            shown,
            primary,
            recipe_code,
        )


def _of_project(path: Path, wishes: Wishes, output: Path) -> OptimizeResult:
    project = load_project(path)
    for name in wishes.profiles:
        if name not in project.profiles:
            raise UserError(
                f"the project has no profile '{name}'{did_you_mean(name, project.profiles)}"
            )
    with open_output(output) as place, search_progress(project.name) as shown:
        return search_project(path, project, wishes, place, shown)


@contextmanager
def _kept(output: Path) -> Iterator[None]:
    """Says after Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(
            f"skerry: stopped; what is finished is kept in {output / 'cache'}: "
            "the same command goes on from there",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(130) from None


def _floors(texts: Sequence[str] | None, option: str) -> dict[str, float]:
    """["macro_f1=0.9"] → {"macro_f1": 0.9}."""
    floors = {}
    for text in texts or ():
        name, separator, value = text.rpartition("=")
        try:
            floors[name] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise UserError(f"{option} {text!r} is not NAME=SHARE, such as macro_f1=0.9")
    return floors


# ── why ──────────────────────────────────────────────────────────────────────────────────────────


def _explain(where: str, profiles: Sequence[str], directory: Path) -> None:
    path = Path(where)
    if path.exists():
        if path.is_dir() and not (path / JSON_NAME).exists():
            raise UserError(f"{path} holds no {JSON_NAME}: no search has ended there")
        result = read_report(path)
    elif "/" in where or path.suffix:
        raise UserError(f"{path}: no such report")
    else:
        with client(directory) as api:
            result = parse_report(api.job_report_json(where), f"the report of job {where}")
    for text in [explain(result, name) for name in profiles] or [explain(result)]:
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
