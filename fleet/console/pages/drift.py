"""Drift: the statistic against its threshold over time, verdicts, and what has been collected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nicegui import ui

from fleet.client.client import ApiError
from fleet.client.schemas import CollectionOut, DriftOut
from fleet.console import charts, formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.tones import tone_of
from fleet.console.view import Tag, View
from fleet.console.widgets import Tile, bars, button, card, empty, page_head, tiles

_FLEET: Final = "fleet"
_ROWS: Final = 20
_PICKS: Final = 24


@dataclass
class _Choice:
    model: str
    scope: str = _FLEET


@dataclass(frozen=True)
class _Data:
    reports: list[DriftOut]
    collection: CollectionOut

    @property
    def newest(self) -> dict[str, DriftOut]:
        """The newest report of each scope: the fleet first, then those that drift."""
        found: dict[str, DriftOut] = {}
        for report in sorted(self.reports, key=lambda report: -report.at):
            found.setdefault(report.scope, report)
        ranked = sorted(
            found.items(),
            key=lambda item: (item[0] != _FLEET, item[1].verdict != "drift", item[0]),
        )
        return dict(ranked)


async def page(view: View, model: str = "") -> None:
    lead = view.t("Whether devices see what the model was judged by. Drift buys labels, not panic.")
    with page_head(view, view.t("Drift"), lead):
        pick = ui.element("div").classes("sk-flow")
    try:
        names = sorted({item.model for item in await view.api.every_model()})
    except ApiError as error:
        with ui.element("div").classes("sk-banner"):
            Tag("span", error.message)
        return
    if not names:
        with ui.element("div").classes("sk-card"):
            empty(
                "show_chart",
                view.t("No models yet"),
                view.t("Drift is checked for models that devices serve."),
            )
        return
    choice = _Choice(model if model in names else names[0])

    async def load() -> _Data:
        return _Data(await view.api.drift(choice.model), await view.api.collection(choice.model))

    live: Live[_Data] = Live(view, load)

    async def change(name: str) -> None:
        choice.model, choice.scope = name, _FLEET
        await live.refresh()

    async def check() -> None:
        await view.act(view.api.check_drift(choice.model), view.t("Checked"))
        await live.refresh()

    with pick:
        if len(names) > 1:
            select = ui.select(names, value=choice.model)
            select.on_value_change(lambda event: change(str(event.value)))
            select.props("outlined dense options-dense data-testid=drift-model")
        button(view.t("Check now"), icon="refresh", testid="drift-check").on_click(check)
    live.part(lambda data: _scopes(view, data, choice, live), of=lambda data: data.newest)

    def chosen(data: _Data) -> list[DriftOut]:
        return [report for report in data.reports if report.scope == choice.scope]

    live.part(
        lambda data: _picture(view, chosen(data), choice),
        of=lambda data: (choice.model, choice.scope, chosen(data)),
    )
    live.part(lambda data: _collection(view, data.collection), of=lambda data: data.collection)
    live.part(
        lambda data: _reports(view, chosen(data)), of=lambda data: (choice.scope, chosen(data))
    )
    await live.start()


def _scopes(view: View, data: _Data, choice: _Choice, live: Live[_Data]) -> None:
    """One button a scope, with its newest verdict; the pressed one is drawn below."""
    if not data.newest:
        return
    buttons: dict[str, Tag] = {}

    async def press(scope: str) -> None:
        choice.scope = scope
        for name, made in buttons.items():
            made.classes(add="sk-here") if name == scope else made.classes(remove="sk-here")
        await live.refresh()

    with ui.element("div").classes("sk-flow").props("data-testid=drift-scopes"):
        for scope, report in list(data.newest.items())[:_PICKS]:
            made = Tag("button", "", "sk-pick" + (" sk-here" if scope == choice.scope else ""))
            made.props["data-testid"] = "drift-scope"
            made.props["data-scope"] = scope
            made.on("click", lambda scope=scope: press(scope))
            buttons[scope] = made
            with made:
                Tag("span", view.t("Whole fleet") if scope == _FLEET else scope)
                verdict = Tag(
                    "span",
                    view.state(report.verdict),
                    f"sk-chip sk-chip--{tone_of(report.verdict)}",
                )
                verdict.props["data-testid"] = "drift-verdict"
                verdict.props["data-state"] = report.verdict


def _picture(view: View, reports: list[DriftOut], choice: _Choice) -> None:
    options = charts.drift(reports, view.t)
    where = view.t("Whole fleet") if choice.scope == _FLEET else choice.scope
    note = view.t("above the threshold the inputs differ from those the model was judged by")
    with card(f"{choice.model} · {where}", note):
        if options is None:
            empty(
                "show_chart",
                view.t("Not checked yet"),
                view.t("Checks start with the first uniform samples from devices."),
            )
            return
        chart = ui.echart(options, renderer="svg").classes("sk-chart")
        chart.props["data-testid"] = "drift-chart"


def _collection(view: View, found: CollectionOut) -> None:
    with card(view.t("Collection"), view.t("samples from the field")):
        if not found.total:
            empty(
                "inbox",
                view.t("Nothing collected yet"),
                view.t("Devices send samples as their sampling policy and byte budget allow."),
            )
            return
        tiles(
            [
                Tile(view.t("Samples"), formats.count(found.total), testid="collection-total"),
                Tile(view.t("Labelled"), formats.count(found.labelled)),
                Tile(view.t("Corrections"), formats.count(found.corrections)),
                *(
                    Tile(
                        view.t(policy), formats.count(number), formats.percent(number / found.total)
                    )
                    for policy, number in sorted(found.by_policy.items())
                ),
            ]
        )
        with ui.element("div").classes("sk-cols"):
            for title, values in (
                (view.t("By device"), found.by_device),
                (view.t("By predicted class"), found.by_predicted),
            ):
                with ui.element("div"):
                    Tag("strong", title, "sk-dim")
                    bars(values)


def _reports(view: View, reports: list[DriftOut]) -> None:
    if not reports:
        return
    with card(view.t("Checks"), view.t("newest first"), body=False):
        ranked = sorted(reports, key=lambda report: -report.at)[:_ROWS]
        Rows(
            [
                Column("scope", view.t("Scope")),
                Column("verdict", view.t("Verdict")),
                Column("statistic", view.t("Statistic"), "sk-right"),
                Column("threshold", view.t("Threshold"), "sk-right"),
                Column("n", view.t("Samples"), "sk-right"),
                Column("detail", view.t("Detail")),
                Column("at", view.t("When"), "sk-nowrap"),
            ],
            testid="drift-row",
        ).show([_report_row(view, index, report) for index, report in enumerate(ranked)])


def _report_row(view: View, index: int, report: DriftOut) -> Row:
    return Row(
        id=f"{report.scope}-{report.at}-{index}",
        cells={
            "scope": [
                tables.text(view.t("Whole fleet"))
                if report.scope == _FLEET
                else tables.link(report.scope, f"/devices/{report.scope}"),
                tables.sub(f"v{report.version}"),
            ],
            "verdict": [tables.chip(view, report.verdict, testid="drift-verdict")],
            "statistic": [tables.text(formats.figure(report.statistic))],
            "threshold": [tables.text(formats.figure(report.threshold))],
            "n": [tables.text(formats.count(report.n))],
            "detail": [tables.sub(_moved(report))],
            "at": [tables.ago(report.at)],
        },
        data={"verdict": report.verdict, "scope": report.scope},
    )


def _moved(report: DriftOut) -> str:
    """The signals that moved most, where the check names them; else whatever it says."""
    moved = report.detail.get("moved")
    if isinstance(moved, dict) and moved:
        ranked = sorted(moved.items(), key=lambda item: -abs(formats.number(item[1]) or 0.0))
        return ", ".join(
            f"{name} {formats.number(value) or 0.0:+.1f}σ" for name, value in ranked[:3]
        )
    return formats.compact(report.detail)
