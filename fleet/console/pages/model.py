"""One version: its pool of candidates on the frontier, its gates, where it comes from and went."""

from __future__ import annotations

from nicegui import ui

from fleet.client.schemas import Json, ModelDetail, VariantOut
from fleet.console import formats, frontier, tables
from fleet.console.live import Live
from fleet.console.pages import model_actions
from fleet.console.pages.models import per_profile
from fleet.console.tables import Column, Row, Rows
from fleet.console.tones import tone_of
from fleet.console.view import Tag, View
from fleet.console.widgets import card, chip, empty, moment, more, page_head, shares, step, steps


async def page(view: View, name: str, version: str) -> None:
    number = int(version) if version.isdecimal() else 0
    crumbs = ((view.t("Models"), "/models"),)
    with page_head(view, f"{name} v{version}", crumbs=crumbs):
        actions = ui.element("div").classes("sk-flow")

    live: Live[ModelDetail] = Live(view, lambda: view.api.model(name, number))

    def head(model: ModelDetail) -> None:
        actions.clear()
        with actions:
            chip(view, model.state, testid="model-state")
            model_actions.draw(view, model, live.refresh)

    live.part(head, of=lambda model: (model.state, model.gates, model.variants), keep=True)
    with ui.element("div").classes("sk-cols sk-cols--wide"):
        live.part(lambda model: _frontier(view, model), of=lambda model: model.variants)
        live.part(lambda model: _gates(view, model), of=lambda model: model.gates)
    live.part(lambda model: _variants(view, model), of=lambda model: model.variants)
    live.part(
        lambda model: _lineage(view, model),
        of=lambda model: (model.metrics, model.environment, model.releases, model.promotions),
    )
    await live.start()


def _frontier(view: View, model: ModelDetail) -> None:
    note = view.t("filled: within the budget · hollow: not · outlined with its name: selected")
    with card(view.t("Frontier"), note):
        options = frontier.picture(model.variants, view.t)
        if options is None:
            empty(
                "scatter_plot",
                view.t("Nothing measured yet"),
                view.t("The build measures every candidate on its profile."),
            )
        else:
            chart = ui.echart(options, renderer="svg").classes("sk-chart")
            chart.props["data-testid"] = "frontier-chart"


def _gates(view: View, model: ModelDetail) -> None:
    with card(view.t("Gates"), view.t("against the champion, on held-out data")):
        if not model.gates:
            empty(
                "rule",
                view.t("Not judged yet"),
                view.t("Gates are judged at the end of the build."),
            )
        for gate in model.gates:
            with ui.element("div").classes("sk-case").props("data-testid=gate"):
                with ui.element("div").classes("sk-line"):
                    chip(view, gate.verdict, testid="gate-verdict")
                    Tag("strong", gate.gate.replace("_", " "))
                Tag("div", gate.reason, "sk-dim sk-wrap")
                if gate.evidence:
                    more(view.t("Evidence"), gate.evidence)


def _variants(view: View, model: ModelDetail) -> None:
    note = view.t("the pool: each can be downloaded, one per profile is selected")
    with card(view.t("Candidates"), note, body=False):
        if not model.variants:
            empty("layers", view.t("No candidates"), view.t("The build has made none yet."))
            return
        Rows(
            [
                Column("variant", view.t("Variant")),
                Column("verdict", view.t("Verdict")),
                Column("p50", "p50", "sk-right sk-nowrap"),
                Column("p90", "p90", "sk-right sk-nowrap"),
                Column("p99", "p99", "sk-right sk-nowrap"),
                Column("qps", "QPS", "sk-right"),
                Column("f1", view.t("Macro F1"), "sk-right"),
                Column("accuracy", view.t("Accuracy"), "sk-right sk-nowrap"),
                Column("size", view.t("Size"), "sk-right sk-nowrap"),
                Column("get", "", "sk-nowrap"),
            ],
            testid="variant-row",
        ).show([_variant_row(view, variant) for variant in _ranked(model.variants)])


def _ranked(variants: list[VariantOut]) -> list[VariantOut]:
    """By profile; the selected one first, then those within the budget, then the fastest."""
    return sorted(
        variants,
        key=lambda variant: (
            variant.profile,
            not variant.selected,
            variant.verdict != "PASS",
            frontier.budgeted(variant) or ("", 0.0),
        ),
    )


def _variant_row(view: View, variant: VariantOut) -> Row:
    measured, scored = variant.measurement, variant.accuracy
    name = [tables.text(variant.name, "sk-strong")]
    if variant.selected:
        name.append(tables.chip(view, "selected", tone="ok", testid="variant-selected"))
    name.append(tables.sub(f"{variant.profile} · {variant.runtime}"))
    verdict = [tables.chip(view, variant.verdict, testid="variant-verdict")]
    if variant.reason:
        verdict.append(tables.sub(variant.reason, bad=variant.verdict == "FAIL"))
    path = f"/downloads/variants/{variant.id}"
    return Row(
        id=str(variant.id),
        cells={
            "variant": name,
            "verdict": verdict,
            "p50": [tables.text(formats.ms(formats.pick(measured, "p50_ms")))],
            "p90": [tables.text(formats.ms(formats.pick(measured, "p90_ms")))],
            "p99": [tables.text(formats.ms(formats.pick(measured, "p99_ms")))],
            "qps": [tables.text(formats.figure(formats.pick(measured, "qps")))],
            "f1": [tables.text(formats.figure(formats.pick(scored, "macro_f1"), 4))],
            "accuracy": [tables.text(formats.percent(formats.pick(scored, "accuracy"), 2))],
            "size": [tables.text(formats.size(variant.bundle_length))]
            if variant.bundle_length
            else [],
            "get": [tables.link(view.t("Download"), path, download=True, testid="variant-get")]
            if variant.bundle_sha
            else [],
        },
        data={"verdict": variant.verdict},
    )


def _lineage(view: View, model: ModelDetail) -> None:
    with ui.element("div").classes("sk-cols"):
        with card(view.t("Lineage"), view.t("from data and code to what devices run")):
            _chain(view, model)
            more(view.t("Environment of the build"), model.environment)
            if model.releases:
                more(view.t("Signed releases"), model.releases)
            if model.promotions:
                Tag("strong", view.t("Promotions"), "sk-dim")
            with steps():
                for entry in sorted(model.promotions, key=lambda row: -float(row.get("at", 0))):
                    _promotion(view, entry)
        with card(view.t("Quality"), view.t("of the selected variants, on held-out data")):
            profiles = per_profile(model.metrics)
            if not profiles:
                empty("analytics", view.t("Nothing selected"), view.t("No variant fits a budget."))
            for profile, found in profiles.items():
                _quality(view, profile, found)


def _quality(view: View, profile: str, found: Json) -> None:
    recall: object = found.get("recall")
    with ui.element("div").classes("sk-case sk-part"):
        with ui.element("div"):
            with ui.element("div").classes("sk-line"):
                Tag("strong", profile)
                Tag("span", str(found.get("variant", "")), "sk-dim")
            with ui.element("div").classes("sk-legend"):
                for name, key in (
                    ("Macro F1", "macro_f1"),
                    ("Accuracy", "accuracy"),
                    ("Balanced accuracy", "balanced_accuracy"),
                ):
                    value = formats.pick(found, key)
                    if value is not None:
                        Tag("span", f"{view.t(name)} {value:.4f}")
                if found.get("n"):
                    Tag("span", f"n = {found['n']}")
        if isinstance(recall, dict):
            known = {str(name): formats.number(value) for name, value in recall.items()}
            Tag("span", view.t("Recall by class"), "sk-faint")
            shares({name: value for name, value in known.items() if value is not None})


def _chain(view: View, model: ModelDetail) -> None:
    links: list[tuple[str, str, str]] = [
        (view.t("Dataset"), formats.short(model.dataset), ""),
        (view.t("Code"), formats.short(model.code_sha), ""),
        (view.t("Job"), formats.short(model.job), f"/jobs/{model.job}" if model.job else ""),
    ]
    if model.parent_version is not None:
        parent = f"/models/{model.model}/{model.parent_version}"
        links.insert(0, (view.t("Parent"), f"v{model.parent_version}", parent))
    links.append((view.t("Version"), f"{model.model} v{model.version}", ""))
    links.extend(
        (f"{view.t('Release')} · {release.get('profile', '')}", f"#{release.get('counter')}", "")
        for release in model.releases
    )
    with ui.element("div").classes("sk-chain").props("data-testid=lineage"):
        for index, (title, value, path) in enumerate(links):
            if index:
                Tag("span", "→", "sk-arrow")
            with ui.element("div").classes("sk-link"):
                Tag("small", title)
                if path:
                    ui.link(value, path).classes("sk-mono")
                else:
                    Tag("span", value or formats.NONE, "sk-mono")


def _promotion(view: View, entry: dict[str, object]) -> None:
    state = str(entry.get("to_state", ""))
    with step(tone_of(state)):
        with ui.element("div").classes("sk-line"):
            chip(view, state)
            Tag("span", view.t("by {name}", name=entry.get("actor", "")), "sk-dim")
            at = entry.get("at")
            moment(float(at) if isinstance(at, int | float) else 0.0, css="sk-faint")
        if entry.get("reason"):
            Tag("div", str(entry["reason"]), "sk-dim sk-wrap")
