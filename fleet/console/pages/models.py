"""Every version of every model, and where it stands between candidate and champion."""

from __future__ import annotations

from typing import Final

from nicegui import ui

from fleet.client.schemas import Json, ModelOut
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.view import View
from fleet.console.widgets import card, empty, page_head

_SHOWN_PROFILES: Final = 4


async def page(view: View) -> None:
    lead = view.t("Versions from candidate to champion, with what they were judged by.")
    with page_head(view, view.t("Models"), lead):
        pass
    live: Live[list[ModelOut]] = Live(view, view.api.every_model)
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
        note = view.many(len(versions), "1 version", "{n} versions")
        with card(name, f"{note} · {versions[0].project}", body=False):
            Rows(
                [
                    Column("version", view.t("Version")),
                    Column("state", view.t("State")),
                    Column("scores", view.t("Selected per profile")),
                    Column("parent", view.t("From")),
                    Column("dataset", view.t("Dataset")),
                    Column("job", view.t("Job")),
                    Column("created", view.t("Created"), "sk-nowrap"),
                ],
                testid="model-version",
            ).show([_row(view, model) for model in versions])


def _row(view: View, model: ModelOut) -> Row:
    profiles = per_profile(model.metrics)
    shown = [
        tables.sub(" · ".join([profile, *_headline(facts)]))
        for profile, facts in list(profiles.items())[:_SHOWN_PROFILES]
    ]
    if len(profiles) > _SHOWN_PROFILES:
        shown.append(tables.sub(view.t("and {n} more", n=len(profiles) - _SHOWN_PROFILES)))
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


def per_profile(metrics: Json) -> dict[str, Json]:
    """What the selected variant of each profile scored."""
    profiles = metrics.get("profiles")
    if not isinstance(profiles, dict):
        return {}
    return {str(name): facts for name, facts in profiles.items() if isinstance(facts, dict)}


def _headline(facts: Json) -> list[str]:
    quality = formats.pick(facts, "macro_f1")
    variant = str(facts.get("variant", ""))
    return [variant] * bool(variant) + [f"F1 {quality:.3f}"] * (quality is not None)
