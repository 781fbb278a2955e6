"""States of a rollout, its waves and its assignments.

All types are immutable and survive a round trip through JSON.  Times are seconds since the epoch.

Rollout: DRAFT → PENDING_APPROVAL → SCHEDULED → RUNNING ⇄ {PAUSED, WINDOW_WAIT} → COMPLETED |
CANCELLED | HALTED → ROLLING_BACK → ROLLED_BACK.  An operator may roll back from any state in which
devices were offered the version.  RUNNING → PENDING_APPROVAL where every wave needs an approval;
COMPLETED → HALTED where devices that came late fail beyond the limit.

Wave: PENDING → OFFERING → SOAKING → PASSED | FAILED | INCONCLUSIVE (a person decides).

Assignment: QUEUED → OFFERED → DOWNLOADING → VERIFIED → STAGED → ACTIVATING → PROBATION → HEALTHY,
or REJECTED, FAILED, TIMED_OUT, LOCAL_ROLLBACK, SUPERSEDED, CANCELLED.  UNREACHABLE is not final.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edge_agent.wire.ids import Slug
from fleet.rollouts import windows


class Frozen(BaseModel):
    """An immutable value.  NaN and infinity are refused: no comparison with them fails closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RolloutState(StrEnum):
    DRAFT = "DRAFT"
    PENDING_APPROVAL = "PENDING_APPROVAL"
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    WINDOW_WAIT = "WINDOW_WAIT"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    HALTED = "HALTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"


ACTIVE_STATES = frozenset(
    {
        RolloutState.PENDING_APPROVAL,
        RolloutState.SCHEDULED,
        RolloutState.RUNNING,
        RolloutState.PAUSED,
        RolloutState.WINDOW_WAIT,
        RolloutState.ROLLING_BACK,
    }
)
"""States in which time or a report can move the rollout on."""

JUDGING_STATES = frozenset(
    {
        RolloutState.PENDING_APPROVAL,
        RolloutState.RUNNING,
        RolloutState.PAUSED,
        RolloutState.WINDOW_WAIT,
    }
)
"""States in which a failed wave halts the rollout."""

TIMED_STATES = JUDGING_STATES | {RolloutState.ROLLING_BACK, RolloutState.COMPLETED}
"""States in which the timers of devices under way run; after COMPLETED those of late returners."""


class WaveState(StrEnum):
    PENDING = "PENDING"
    OFFERING = "OFFERING"
    SOAKING = "SOAKING"
    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"


class AssignmentPhase(StrEnum):
    """Values equal those of `edge_agent.wire.messages.Phase` where a device can report them."""

    QUEUED = "queued"
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    STAGED = "staged"
    ACTIVATING = "activating"
    PROBATION = "probation"
    HEALTHY = "healthy"
    REJECTED = "rejected"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOCAL_ROLLBACK = "rolled_back"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    UNREACHABLE = "unreachable"


PROGRESS = (
    AssignmentPhase.QUEUED,
    AssignmentPhase.OFFERED,
    AssignmentPhase.DOWNLOADING,
    AssignmentPhase.VERIFIED,
    AssignmentPhase.STAGED,
    AssignmentPhase.ACTIVATING,
    AssignmentPhase.PROBATION,
    AssignmentPhase.HEALTHY,
)
"""The way of an update that goes well, in order."""

IN_FLIGHT = frozenset(PROGRESS[1:-1])
REPORTED_FAILURES = frozenset(
    {AssignmentPhase.REJECTED, AssignmentPhase.FAILED, AssignmentPhase.LOCAL_ROLLBACK}
)
FAILURES = REPORTED_FAILURES | {AssignmentPhase.TIMED_OUT}
RESPONDED = FAILURES | {AssignmentPhase.HEALTHY}
"""The denominator of the failure gate."""

GONE = frozenset({AssignmentPhase.SUPERSEDED, AssignmentPhase.CANCELLED})
SETTLED = RESPONDED | GONE | {AssignmentPhase.UNREACHABLE}
"""Phases that a wave does not wait for."""


class GateSpec(Frozen):
    """What a wave is held to.

    A rise over the old version stops a rollout when it is both proven (`false_alarm`) and large
    enough to matter (`max_…_increase`, `max_…_ratio`).

    Attributes:
        min_responders: fewer responders than this leave a wave inconclusive.
        max_failure_rate: largest tolerated share of failures among the responders.
        confidence: one-sided confidence of the Wilson bounds.
        require_bound: pass only when the upper bound is within `max_failure_rate` too, which takes
            about 25 responders without a failure for 10 % at 95 %.
        false_alarm: largest probability with which the comparisons with the old version stop a
            version that equals it, over the whole rollout.
        max_failure_increase: tolerated rise of the share of failed updates over the old version's.
        max_error_increase: tolerated rise of a device's share of failed requests.
        max_reject_increase: the same of requests that a checker refused.
        max_correction_increase: the same of predictions that a person corrected.
        max_p99_ratio: tolerated ratio of p99 latencies to the control group.
        max_memory_ratio: tolerated ratio of the peak memory to the control group.
        drift_level: a device drifts when its window would be as unlike the version's reference with
            less than this probability.
        min_requests: requests on either side below which shares of them are not compared.
        min_devices: devices on either side below which nothing is compared.
        require_comparison: a wave whose figures allow no comparison needs a person.
        control_percent: share of each profile that is held back as a control group until all other
            waves have passed.
    """

    min_responders: int = Field(default=1, ge=1)
    max_failure_rate: float = Field(default=0.1, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    require_bound: bool = False
    false_alarm: float = Field(default=0.01, gt=0, le=0.2)
    max_failure_increase: float = Field(default=0.01, ge=0, lt=1)
    max_error_increase: float = Field(default=0.01, ge=0, lt=1)
    max_reject_increase: float = Field(default=0.02, ge=0, lt=1)
    max_correction_increase: float = Field(default=0.02, ge=0, lt=1)
    max_p99_ratio: float = Field(default=1.15, ge=1, le=100)
    max_memory_ratio: float = Field(default=1.25, ge=1, le=100)
    drift_level: float = Field(default=0.01, gt=0, le=0.5)
    min_requests: int = Field(default=200, ge=1)
    min_devices: int = Field(default=5, ge=2)
    require_comparison: bool = False
    control_percent: float = Field(default=0.0, ge=0, le=50)

    @model_validator(mode="before")
    @classmethod
    def _drop_windows(cls, given: Any) -> Any:
        """Rollouts stored by earlier versions counted reports, not devices."""
        if isinstance(given, dict):
            return {name: value for name, value in given.items() if name != "min_windows"}
        return given


class Outcomes(Frozen):
    """How many updates responded, and how many of these failed."""

    responders: int = Field(default=0, ge=0)
    failures: int = Field(default=0, ge=0)


class WavePlan(Frozen):
    """Who is in a wave, and how long it is watched afterwards.  Exactly one size is given.

    Attributes:
        count: this many devices.
        percent: this share of the devices that no earlier wave took.
        query: every device left that the query matches (`fleet.devices.query`).
    """

    count: int | None = Field(default=None, ge=1)
    percent: float | None = Field(default=None, gt=0, le=100)
    query: str | None = Field(default=None, min_length=1, max_length=2000)
    soak_s: float = Field(default=30.0, ge=0)

    @property
    def what(self) -> str:
        """The size as a person wrote it."""
        if self.query is not None:
            return self.query
        return f"{self.percent:g}%" if self.percent is not None else str(self.count)


class Release(Frozen):
    """What a profile gets: a target of the signed repositories."""

    target: str
    version: int = Field(ge=1)
    counter: int = Field(ge=1)


class Previous(Frozen):
    """What a twin named before the rollout, and the rollout that had put it there."""

    release: Release
    rollout: str | None = None


class Plan(Frozen):
    """All that is decided before a rollout starts.

    Attributes:
        releases: hardware profile → release.
        probation_s: time that a device watches the new version before it commits.
        phase_timeout_s: time a device may spend in one phase after it confirmed its assignment.
        reach_timeout_s: time after which a device that confirmed nothing is UNREACHABLE.
        start_at: not before this time.
        windows: spans of the week in which devices may be offered the version, as in
            `edge_agent.wire.windows`, by the clock of `time_zone`; empty means at any time.
        created_by: who may not approve it.
        needs_approval: a second person must approve it before it starts.
        approve_each_wave: a second person must approve each wave before it is offered.
        on_failure: whether a failed gate only halts, or gives every device back what it had.
        takes_newcomers: devices that come to match while it goes on join its last wave.
        whole_fleet: no device of the version's profiles was left out; a rollout like that makes
            its version the champion.
        mode: "replace" puts the version in the place of the one before; "ab" and "shadow" try it
            beside that one on the same devices (`docs/guides/trials.md`).
        share: of the requests, that such a trial answers or computes; 0 to 1.
        history: profile → what came of the updates that brought the version that is replaced.
    """

    model: Slug
    version: int = Field(ge=1)
    releases: dict[str, Release]
    gate: GateSpec = GateSpec()
    probation_s: float = Field(default=10.0, ge=0)
    phase_timeout_s: float = Field(default=300.0, gt=0)
    reach_timeout_s: float = Field(default=60.0, gt=0)
    start_at: float = 0.0
    windows: tuple[str, ...] = Field(default=(), max_length=windows.MAX_WINDOWS)
    time_zone: str = "UTC"
    created_by: str = ""
    needs_approval: bool = False
    approve_each_wave: bool = False
    on_failure: Literal["halt", "rollback"] = "halt"
    takes_newcomers: bool = False
    whole_fleet: bool = False
    mode: Literal["replace", "ab", "shadow"] = "replace"
    share: float = Field(default=0.0, ge=0, le=1)
    history: dict[str, Outcomes] = Field(default_factory=dict)

    @property
    def is_trial(self) -> bool:
        """Whether the version is tried beside the one that serves."""
        return self.mode != "replace"

    @field_validator("windows")
    @classmethod
    def _are_windows(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            windows.parse(text)
        return texts

    @field_validator("time_zone")
    @classmethod
    def _is_time_zone(cls, name: str) -> str:
        windows.zone(name)
        return name


class Wave(Frozen):
    """Attributes:
    what: its size as it was planned, e.g. "25%".
    approved_by: who let it be offered, where that needs an approval.
    started_at: when it was offered.
    settled_at: when the last of its devices settled; the soak runs from here.
    """

    index: int
    soak_s: float
    what: str = ""
    approved_by: str = ""
    state: WaveState = WaveState.PENDING
    started_at: float | None = None
    settled_at: float | None = None
    ended_at: float | None = None
    reason: str = ""


class Assignment(Frozen):
    """One device's part.

    Attributes:
        generation: of the desired twin that carries it; 0 until it was assigned.
        previous: what the twin named before this rollout, None if it named nothing.
        delivered_at: when the device confirmed the assignment.
        since: when `phase` (or its timer) began, by our clock.
        online: whether the broker holds a session of it.
        asked: its assignment was asked for, whether or not it has been carried out.
        owned: False once a newer assignment took the device; a roll-back leaves it alone then.
        late: came when its wave was offered already; no wave waits for it, its failure counts.
        restoring: `release` is what the roll-back gave back.
        failed_in: phase in which it failed or timed out.
    """

    device: str
    profile: str
    wave: int
    release: Release
    previous: Previous | None = None
    phase: AssignmentPhase = AssignmentPhase.QUEUED
    generation: int = 0
    delivered_at: float | None = None
    since: float = 0.0
    online: bool = True
    asked: bool = False
    owned: bool = True
    late: bool = False
    restoring: bool = False
    failed_in: AssignmentPhase | None = None
    reason: str = ""
    detail: str = ""


class Rollout(Frozen):
    """The whole state.

    Attributes:
        current: index of the wave being worked on.
        awaiting_release: a roll-back waits for the old bytes to be published again.
    """

    id: Slug
    plan: Plan
    waves: tuple[Wave, ...] = Field(min_length=1)
    assignments: dict[str, Assignment]
    state: RolloutState = RolloutState.DRAFT
    current: int = 0
    awaiting_release: bool = False
    reason: str = ""

    def of_wave(self, index: int) -> list[Assignment]:
        """The wave's assignments."""
        return [each for each in self.assignments.values() if each.wave == index]


class Serving(Frozen):
    """Serving figures of one device and version over a span of time.

    Attributes:
        requests: predictions, rejects and errors together.
        p99_us: mean of the reports' p99, weighted by their requests, microseconds.
        rss_mib: largest resident memory that the agent reported.
    """

    requests: int = Field(default=0, ge=0)
    errors: int = Field(default=0, ge=0)
    rejects: int = Field(default=0, ge=0)
    corrections: int = Field(default=0, ge=0)
    p99_us: float | None = Field(default=None, gt=0)
    rss_mib: float | None = Field(default=None, gt=0)


class DeviceFigures(Frozen):
    """One device during a wave's soak.

    Attributes:
        now: during the soak, on the version that its side stands for.
        before: over a span of the same length before the wave was offered, on the old version.
        drift_p: probability of a window at least as unlike its version's reference without drift.
    """

    device: str
    profile: str
    now: Serving = Serving()
    before: Serving | None = None
    drift_p: float | None = Field(default=None, ge=0, le=1)


class WaveMetrics(Frozen):
    """Figures of one side during a wave's soak, device by device."""

    devices: tuple[DeviceFigures, ...] = ()

    @property
    def requests(self) -> int:
        return sum(each.now.requests for each in self.devices)

    @property
    def errors(self) -> int:
        return sum(each.now.errors for each in self.devices)


class Comparison(Frozen):
    """Devices of the wave on the new version beside devices of the control group."""

    treated: WaveMetrics = WaveMetrics()
    control: WaveMetrics = WaveMetrics()
