"""What the API says of rollouts beside `RolloutIn` and `RolloutDetail`: pages, plans, reasons."""

from __future__ import annotations

from pydantic import Field

from fleet.client.schemas import ApiModel, ApiRequest, Json, ModelOut, Page, RolloutOut


class RolloutPage(Page):
    items: list[RolloutOut]


class ModelPage(Page):
    items: list[ModelOut]


class AssignmentOut(ApiModel):
    """One device's part in a rollout."""

    device: str
    wave: int
    phase: str
    reason: str
    detail: str
    generation: int
    target: str
    updated_at: float


class AssignmentPage(Page):
    items: list[AssignmentOut]


class SteerIn(ApiRequest):
    """Why a person asks for something; shown with the state and in the audit."""

    reason: str = Field(default="", max_length=300)


class PlannedWave(ApiModel):
    """One wave of a dry run.

    Attributes:
        what: its size as it was written.
        profiles: hardware profile → devices.
        offline: how many of them are offline now; they would not be waited for long.
        detects: smallest effects that its gates can see, in words.
        starts_at, ends_at: when, if devices take as long as they took before; 0: unknown.
    """

    index: int
    what: str
    devices: int
    profiles: dict[str, int]
    offline: int
    soak_s: float
    detects: list[str]
    starts_at: float
    ends_at: float


class ExcludedOut(ApiModel):
    """Devices that are left out for one reason; `examples` names the first few."""

    reason: str
    devices: int
    examples: list[str]


class RolloutPlanOut(ApiModel):
    """A dry run: what `start` would do now.

    Attributes:
        superseded: rollouts of older versions that would lose devices.
        newcomers: whether devices that come later would join the last wave.
        update_s: seconds that one device is expected to take, by the updates before.
        expected_s: seconds until it would have completed, without time that people take.
        cautions: what a careful person would want to know before starting.
    """

    model: str
    version: int
    devices: int
    waves: list[PlannedWave]
    excluded: list[ExcludedOut]
    superseded: list[str]
    newcomers: bool
    needs_approval: bool
    update_s: float
    expected_s: float
    cautions: list[str]


class HeldUpOut(ApiModel):
    """A device that its wave waits for."""

    device: str
    phase: str
    for_s: float
    reason: str


class ExplainOut(ApiModel):
    """Why a rollout is where it is.

    Attributes:
        headline: its state in one sentence.
        lines: what led there and what comes next, a sentence each.
        held_up: the first devices that the present wave waits for.
        waits_for: what must happen for it to go on; empty when nothing must.
    """

    id: str
    state: str
    headline: str
    lines: list[str]
    held_up: list[HeldUpOut]
    held_up_total: int
    waits_for: str
    plan: Json
