"""Every version of every model, and where it stands between candidate and champion."""

from __future__ import annotations

from nicegui import ui

from fleet.client.schemas import ModelOut
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.view import View
from fleet.console.widgets import card, empty, page_head

_SHOWN_SCORES = 3


async def page(view: View) -> None:
    lead = view.t("Versions from candidate to champion, with what they were judged by.")
    with page_head(view, view.t("Models"), lead):
        pass
    live: Live[list[ModelOut]] = Live(view, view.api.models)
    live.part(lambda models: _groups(view, models))
    await live.start()


def _groups(view: View, models: list[ModelOut]) -> None:
    if not models:
        with ui.element("div").classes("sk-card"):
            empty(
                "category",
                view.t("No models yet"),
                view.t("Apply a project and build it; each build adds a candidate here."),
                code="skerry apply PROJECT_DIR\nskerry build PROJECT",
            )
        return
    for name in sorted({model.model for model in models}):
        versions = sorted(
            (model for model in models if model.model == name),
            key=lambda model: -model.version,
        )
        note = view.t("{n} versions", n=len(versions))
        with card(name, f"{note} · {versions[0].project}", body=False):
            Rows(
                [
                    Column("version", view.t("Version")),
                    Column("state", view.t("State")),
                    Column("scores", view.t("Scores")),
                    Column("parent", view.t("From")),
                    Column("dataset", view.t("Dataset")),
                    Column("job", view.t("Job")),
                    Column("created", view.t("Created"), "sk-nowrap"),
                ],
                testid="model-version",
            ).show([_row(view, model) for model in versions])


def _row(view: View, model: ModelOut) -> Row:
    scores = list(formats.scores(model.metrics))
    ranked = sorted(scores, key=lambda score: "macro_f1" not in score[0])
    shown = [
        tables.text(f"{name.replace('_', ' ')} {formats.figure(value)}", "sk-sub")
        for name, value in ranked[:_SHOWN_SCORES]
    ]
    if len(scores) > _SHOWN_SCORES:
        shown.append(tables.sub(view.t("and {n} more", n=len(scores) - _SHOWN_SCORES)))
    return Row(
        id=f"{model.model}-{model.version}",
        cells={
            "version": [tables.main(f"v{model.version}", f"/models/{model.model}/{model.version}")],
            "state": [tables.chip(view, model.state, testid="model-state")],
            "scores": shown,
            "parent": [tables.text(f"v{model.parent_version}")]
            if model.parent_version is not None
            else [],
            "dataset": [tables.mono(formats.short(model.dataset), model.dataset)],
            "job": [tables.link(formats.short(model.job), f"/jobs/{model.job}")]
            if model.job
            else [],
            "created": [tables.ago(model.created_at)],
        },
        link=True,
        data={"model": model.model, "version": str(model.version), "state": model.state},
    )
