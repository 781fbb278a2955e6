"""One job: where it stands, what it was asked, and what came out."""

from __future__ import annotations

from nicegui import ui

from fleet.client.schemas import JobOut
from fleet.console import formats
from fleet.console.live import Live
from fleet.console.view import Tag, View
from fleet.console.widgets import card, chip, empty, facts, moment, more, page_head


async def page(view: View, job_id: str) -> None:
    crumbs = ((view.t("Jobs"), "/jobs"),)
    with page_head(view, view.t("Job {id}", id=formats.short(job_id)), crumbs=crumbs):
        pass
    live: Live[JobOut] = Live(view, lambda: view.api.job(job_id))
    live.part(lambda job: _state(view, job))
    live.part(lambda job: _result(view, job), of=lambda job: (job.result, job.params, job.state))
    await live.start()


def _state(view: View, job: JobOut) -> None:
    with card(f"{job.project} · {view.t(job.kind)}"):
        with ui.element("div").classes("sk-line"):
            chip(view, job.state, testid="job-state")
            if job.step:
                Tag("span", job.step)
            Tag("span", formats.percent(job.progress, 0), "sk-dim sk-num")
            moment(job.updated_at, css="sk-faint")
        with ui.element("div").classes("sk-meter"):
            done = 1.0 if job.state == "succeeded" else job.progress
            tone = {"succeeded": "ok", "failed": "bad", "cancelled": "warn"}.get(job.state, "")
            ui.element("i").classes(tone).style(f"width: {100 * min(max(done, 0), 1):.1f}%")
        if job.error:
            with ui.element("div").classes("sk-banner").props("data-testid=job-error"):
                ui.icon("error_outline")
                Tag("span", job.error, "sk-wrap")


def _result(view: View, job: JobOut) -> None:
    with card(view.t("Result")):
        if not job.result:
            empty("hourglass_empty", view.t("No result yet"), view.t("It stands here at the end."))
        else:
            with ui.element("div").classes("sk-flow"):
                model, version = job.result.get("model"), job.result.get("version")
                if model and version:
                    ui.link(f"{model} v{version}", f"/models/{model}/{version}")
                if job.result.get("report_html"):
                    path = f"/reports/{job.id}"
                    report = ui.link(view.t("Report of the optimizer"), path, new_tab=True)
                    report.props("data-testid=job-report")
            selected = job.result.get("selected")
            if isinstance(selected, dict):
                facts([(str(profile), str(variant)) for profile, variant in selected.items()])
            if isinstance(job.result.get("gates"), str):
                with ui.element("div").classes("sk-line"):
                    Tag("span", view.t("Gates"), "sk-faint")
                    chip(view, str(job.result["gates"]), testid="gate-verdict")
            more(view.t("Whole result as JSON"), job.result)
        more(view.t("Parameters"), job.params)
