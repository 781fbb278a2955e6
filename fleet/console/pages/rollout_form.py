"""The form that starts a rollout: which version, which devices, in which waves, held to what."""

from __future__ import annotations

from typing import Final, TypeVar

from nicegui import ui
from pydantic import ValidationError

from edge_agent.wire.base import describe
from fleet.client.client import ApiError
from fleet.client.schemas import ModelOut, RolloutIn
from fleet.console import waves
from fleet.console.labels import BadLabels, parse_labels
from fleet.console.view import Tag, View
from fleet.console.widgets import button, card, empty, page_head

Field = TypeVar("Field", ui.select, ui.input)

_RELEASED: Final = ("published", "champion")


async def page(view: View, model: str = "", version: str = "") -> None:
    crumbs = ((view.t("Rollouts"), "/rollouts"),)
    lead = view.t("Each wave is judged before the next one starts.")
    with page_head(view, view.t("Start a rollout"), lead, crumbs=crumbs):
        pass
    try:
        models = await view.api.every_model()
    except ApiError as error:
        with ui.element("div").classes("sk-banner"):
            Tag("span", error.message)
        return
    released = [item for item in models if item.state in _RELEASED]
    if not released:
        with ui.element("div").classes("sk-card"):
            empty(
                "verified",
                view.t("Nothing is published yet"),
                view.t("Approve and publish a version under Models first."),
            )
        return
    _Form(view, released, f"{model} {version}").draw()


class _Form:
    def __init__(self, view: View, released: list[ModelOut], wanted: str) -> None:
        self._view = view
        self._versions = {
            f"{item.model} {item.version}": f"{item.model} v{item.version} · "
            f"{view.state(item.state)}"
            for item in sorted(released, key=lambda item: (item.model, -item.version))
        }
        self._wanted = wanted if wanted in self._versions else next(iter(self._versions))

    def draw(self) -> None:
        view = self._view
        with card(view.t("What and where")), ui.element("div").classes("sk-form"):
            self._version = _dress(
                ui.select(self._versions, value=self._wanted, label=view.t("Version"))
            ).props("data-testid=rollout-version")
            self._profiles = _dress(
                ui.select([], value=[], multiple=True, label=view.t("Profiles"))
            ).props("use-chips")
            self._profiles.props["hint"] = view.t("Empty: every profile that has a release")
            self._labels = _dress(ui.input(view.t("Labels"), placeholder="site=busan, line=3"))
            self._labels.props["hint"] = view.t("Only devices that carry all of these")
            self._query = _dress(ui.input(view.t("Query"), placeholder='site == "busan"'))
            self._query.props("data-testid=rollout-query")
            self._query.props["hint"] = view.t("Only devices that match; empty: all")
        with card(view.t("Waves")), ui.element("div").classes("sk-form"):
            self._waves = _dress(ui.input(view.t("Sizes"), value="1, 25%, 100%"))
            self._waves.props("data-testid=rollout-waves")
            self._waves.props["hint"] = view.t(
                "devices, a share of those left, or a {query}", query="{query}"
            )
            self._soak = _number(view.t("Soak, seconds"), 30)
            self._soak.props["hint"] = view.t("how long a wave is watched after it settled")
            self._probation = _number(view.t("Probation, seconds"), 10)
            self._probation.props["hint"] = view.t("how long a device watches before it commits")
        with card(view.t("Gates")), ui.element("div").classes("sk-form"):
            self._failures = _number(view.t("Largest failure rate, %"), 10)
            self._responders = _number(view.t("Fewest responders"), 1)
            self._responders.props["hint"] = view.t("fewer leave a wave to a person")
            self._timeout = _number(view.t("Longest time in a phase, seconds"), 300)
        with card(view.t("Safety")), ui.element("div").classes("sk-form"):
            self._rollback = ui.switch(view.t("Roll back when a gate fails"), value=True)
            self._approval = ui.switch(view.t("A second person must approve it"))
            self._approval.props("data-testid=rollout-needs-approval")
            self._each_wave = ui.switch(view.t("And every wave"))
            self._windows = _dress(ui.input(view.t("Windows"), placeholder="Mon-Fri 22:00-05:00"))
            self._windows.props["hint"] = view.t("When devices are offered it; empty: always")
            self._zone = _dress(ui.input(view.t("Time zone"), value="UTC"))
        self._problem = ui.element("div").classes("sk-banner").props("role=alert")
        self._problem.set_visibility(False)
        with ui.element("div").classes("sk-flow"):
            button(view.t("Start"), icon="rocket_launch", main=True, testid="rollout-start").on(
                "click", self._start
            )
            button(view.t("Cancel"), testid="rollout-back").on_click(lambda: view.go("/rollouts"))
        self._version.on_value_change(self._profiles_of)
        ui.timer(0, self._profiles_of, once=True)

    async def _profiles_of(self) -> None:
        """Offer the profiles that the chosen version has a release for."""
        name, _, version = str(self._version.value).rpartition(" ")
        try:
            detail = await self._view.api.model(name, int(version))
        except ApiError as error:
            self._complain(error.message)
            return
        profiles = sorted({str(release.get("profile", "")) for release in detail.releases})
        self._profiles.set_options(profiles, value=[])

    def _request(self) -> RolloutIn:
        name, _, version = str(self._version.value).rpartition(" ")
        return RolloutIn(
            model=name,
            version=int(version),
            profiles=list(self._profiles.value or []),
            labels=parse_labels(self._labels.value or ""),
            query=(self._query.value or "").strip(),
            on_failure="rollback" if self._rollback.value else "halt",
            needs_approval=bool(self._approval.value),
            approve_each_wave=bool(self._each_wave.value),
            windows=[
                part.strip() for part in (self._windows.value or "").split(";") if part.strip()
            ],
            time_zone=(self._zone.value or "UTC").strip(),
            waves=waves.parse(self._waves.value or "", self._soak.value or 0.0),
            min_responders=int(self._responders.value or 0),
            max_failure_rate=(self._failures.value or 0.0) / 100,
            probation_s=self._probation.value or 0.0,
            phase_timeout_s=self._timeout.value or 0.0,
        )

    async def _start(self) -> None:
        try:
            started = await self._view.api.start_rollout(self._request())
        except ValidationError as error:
            self._complain(describe(error))
        except (BadLabels, waves.BadWaves) as error:
            self._complain(str(error))
        except ApiError as error:
            self._complain(error.message)
        else:
            self._view.go(f"/rollouts/{started.id}")

    def _complain(self, line: str) -> None:
        self._problem.set_visibility(True)
        self._problem.clear()
        with self._problem:
            ui.icon("error_outline")
            Tag("span", line).props("data-testid=form-problem")


def _dress(field: Field) -> Field:
    return field.props("outlined dense options-dense").classes("sk-field")


def _number(label: str, value: float) -> ui.number:
    return ui.number(label, value=value, min=0).props("outlined dense").classes("sk-field")
