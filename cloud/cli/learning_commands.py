"""`skerry check|apply|build|retrain|report|jobs|drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, errors, table, watch_job, when
from fleet.client.schemas import DriftOut, JobIn, JobOut

jobs = typer.Typer(no_args_is_help=True, help="Durable jobs: builds and retrainings.")
drift = typer.Typer(no_args_is_help=True, help="Drift of the field's inputs.")

ProjectArgument = Annotated[Path, typer.Argument(help="Directory with a skerry.yaml.")]


def check(directory: ProjectArgument = Path()) -> None:
    """Check a project's skerry.yaml and the functions it names, without a control plane."""
    from cloud.project import load_project

    project = load_project(directory)
    console.print(
        f"{directory / 'skerry.yaml'}: project {project.name}, model {project.model}, "
        f"{len(project.family.all())} members, profiles {', '.join(project.profiles)}: good"
    )


def apply(
    project_directory: ProjectArgument = Path(), directory: DirectoryOption = DEFAULT_DIRECTORY
) -> None:
    """Check a project and upload it to the control plane."""
    from cloud.project import load_project, pack_project

    project = load_project(project_directory)
    with client(directory) as api:
        applied = api.apply_project(project.name, pack_project(project_directory))
    console.print(f"applied {applied.name} (code {applied.code_sha[:12]})")


def build(
    project: str,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    wait: Annotated[bool, typer.Option(help="Show progress until it ends.")] = True,
) -> None:
    """Dataset version, training, optimisation, gates: ends in a candidate to approve."""
    _job("build", project, directory, wait)


def retrain(
    project: str,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    wait: Annotated[bool, typer.Option(help="Show progress until it ends.")] = True,
) -> None:
    """The same on the newest labelled data of the field, judged against the champion."""
    _job("retrain", project, directory, wait)


def _job(kind: Literal["build", "retrain"], project: str, directory: Path, wait: bool) -> None:
    with client(directory) as api:
        job = api.start_job(JobIn(kind=kind, project=project))
        if wait:
            _finish(watch_job(lambda: api.job(job.id)))
        else:
            console.print(job.id)


def _finish(job: JobOut) -> None:
    if job.state != "succeeded":
        errors.print(f"skerry: {job.kind} {job.state}: {job.error}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    version = job.result.get("version")
    console.print(f"{job.kind} succeeded: {job.result.get('model')}:{version} (job {job.id})")


def report(
    job_id: str,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("report.html"),
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Save the optimizer's report of a job: every candidate, its verdict, the frontier."""
    with client(directory) as api:
        output.write_text(api.job_report(job_id), encoding="utf-8")
    console.print(f"wrote {output}")


@jobs.command("list")
def list_jobs(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """Newest first."""
    with client(directory) as api:
        rows = api.jobs()
    if json:
        as_json(rows)
        return
    table(
        "jobs",
        ("id", "kind", "project", "state", "step", "progress", "started", "error"),
        [
            (
                job.id, job.kind, job.project, job.state, job.step, f"{job.progress:.0%}",
                when(job.created_at), job.error,
            )
            for job in rows
        ],
    )  # fmt: skip


@jobs.command("watch")
def watch(job_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Show a job's progress until it ends."""
    with client(directory) as api:
        _finish(watch_job(lambda: api.job(job_id)))


@jobs.command("cancel")
def cancel(job_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Cancel a job; its finished steps stay cached."""
    with client(directory) as api:
        console.print(api.cancel_job(job_id).state)


@drift.command("check")
def check_now(
    model: str, directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False
) -> None:
    """Check a model's champion now instead of at the next turn."""
    with client(directory) as api:
        reports = api.check_drift(model)
    if json:
        as_json(reports)
    else:
        _drift_table(reports)


@drift.command("list")
def list_drift(
    model: str = "", directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False
) -> None:
    """Newest first."""
    with client(directory) as api:
        reports = api.drift(model)
    if json:
        as_json(reports)
    else:
        _drift_table(reports)


def _drift_table(reports: list[DriftOut]) -> None:
    table(
        "drift",
        ("model", "scope", "verdict", "statistic", "threshold", "n", "at"),
        [
            (
                f"{r.model}:{r.version}", r.scope, r.verdict, f"{r.statistic:.1f}",
                f"{r.threshold:.1f}", r.n, when(r.at),
            )
            for r in reports
        ],
    )  # fmt: skip
