"""Jobs: builds and retrainings, with their progress."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from nicegui import ui

from fleet.client.schemas import JobIn, JobOut, ProjectOut
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Piece, Row, Rows
from fleet.console.tones import Tone
from fleet.console.view import View, heading
from fleet.console.widgets import button, card, empty, page_head

_OPEN = ("queued", "running")


@dataclass(frozen=True)
class _Data:
    jobs: list[JobOut]
    projects: list[ProjectOut]


async def page(view: View) -> None:
    lead = view.t("Builds and retrainings. They survive a restart and go on where they stopped.")
    with page_head(view, view.t("Jobs"), lead):
        start = button(view.t("Start a job"), icon="add", main=True, testid="job-new")

    async def load() -> _Data:
        jobs, projects = await asyncio.gather(view.api.jobs(), view.api.projects())
        return _Data(jobs, projects)

    live: Live[_Data] = Live(view, load)
    projects: list[str] = []
    start.on_click(lambda: _start(view, projects, live))

    async def act(_act: str, job_id: str) -> None:
        await view.act(view.api.cancel_job(job_id), view.t("Cancelling"))
        await live.refresh()

    with card(body=False):
        table = Rows(
            [
                Column("job", view.t("Job")),
                Column("state", view.t("State")),
                Column("progress", view.t("Progress")),
                Column("created", view.t("Created"), "sk-nowrap"),
                Column("updated", view.t("Last change"), "sk-nowrap"),
                Column("do", "", "sk-nowrap"),
            ],
            testid="job-row",
        ).on_act(act)
        none = ui.element("div")

        def show(data: _Data) -> None:
            projects[:] = [project.name for project in data.projects]
            start.set_enabled(bool(projects))
            table.show([_row(view, job) for job in data.jobs])
            table.set_visibility(bool(data.jobs))
            none.clear()
            if not data.jobs:
                with none:
                    empty(
                        "pending_actions",
                        view.t("No jobs yet"),
                        view.t("A build trains a project's models and measures them.")
                        if projects
                        else view.t("Apply a project first, then start a job for it."),
                        code="" if projects else "skerry apply PROJECT_DIR",
                    )

        live.part(show, keep=True)
    await live.start()


async def _start(view: View, projects: list[str], live: Live[_Data]) -> None:
    with view.host, ui.dialog() as dialog, ui.element("div").classes("sk-dialog"):
        heading(2, view.t("Start a job"))
        project = ui.select(list(projects), value=projects[0], label=view.t("Project"))
        project.props("outlined dense options-dense").classes("sk-field")
        kinds = {
            "build": view.t("Build: train, optimise and judge from the project's dataset"),
            "retrain": view.t("Retrain: the same with the samples and labels of the field"),
        }
        kind = ui.radio(kinds, value="build")
        with ui.element("div").classes("sk-actions"):
            ui.button(view.t("Cancel"), on_click=lambda: dialog.submit(None)).props(
                "flat no-caps"
            ).classes("sk-plain")
            ui.button(view.t("Start"), on_click=lambda: dialog.submit(True)).props(
                "unelevated no-caps color=primary data-testid=confirm-yes"
            )
    agreed = await dialog
    wanted: Literal["build", "retrain"] = "retrain" if kind.value == "retrain" else "build"
    name = str(project.value)
    dialog.delete()
    if agreed:
        await view.act(view.api.start_job(JobIn(kind=wanted, project=name)), view.t("Job queued"))
        await live.refresh()


def _row(view: View, job: JobOut) -> Row:
    progress: list[Piece] = []
    if job.state in _OPEN or job.state == "succeeded":
        done = 1.0 if job.state == "succeeded" else job.progress
        tone: Tone | None = "ok" if job.state == "succeeded" else None
        progress.append(tables.meter([(tone, done)], formats.percent(done, 0)))
    if job.state in _OPEN and job.step:
        progress.append(tables.sub(f"{job.step} · {formats.percent(job.progress, 0)}"))
    if job.error:
        progress.append(tables.sub(job.error, bad=True))
    do: list[Piece] = []
    if job.result.get("report_html"):
        report = tables.link(view.t("Report"), f"/reports/{job.id}", testid="job-report")
        do.append(report | {"target": "_blank"})
    if job.state in _OPEN:
        do.append(tables.press("cancel", view.t("Cancel"), bad=True, testid="job-cancel"))
    return Row(
        id=job.id,
        cells={
            "job": [
                tables.main(f"{job.project} · {view.t(job.kind)}", f"/jobs/{job.id}"),
                tables.sub(formats.short(job.id)),
            ],
            "state": [tables.chip(view, job.state, testid="job-state")],
            "progress": progress,
            "created": [tables.ago(job.created_at)],
            "updated": [tables.ago(job.updated_at)],
            "do": do,
        },
        link=True,
        data={"state": job.state},
    )
