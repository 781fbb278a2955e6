"""The transitions of a rollout: (state, events, now) → (state, effects).

Pure: no clock, no randomness, no I/O.  An event that does not fit the state changes nothing, so a
driver may repeat events; a person's verb is checked beforehand with `VERBS`.

After the events of a call the rollout moves on as far as it can: timers run out, waves are judged,
the next wave is offered.  A `Tick` is the event with which time alone does that.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.rollouts import events as ev
from fleet.rollouts import judging, people, reports, rolling_back
from fleet.rollouts.model import JUDGING_STATES, TIMED_STATES, Rollout, RolloutState
from fleet.rollouts.people import VERBS
from fleet.rollouts.work import Work

__all__ = ["VERBS", "run", "step"]


def step(rollout: Rollout, event: ev.Event, now: float) -> tuple[Rollout, list[ev.Effect]]:
    """Apply one event at `now` (seconds since the epoch)."""
    return run(rollout, (event,), now)


def run(
    rollout: Rollout, events: Sequence[ev.Event], now: float
) -> tuple[Rollout, list[ev.Effect]]:
    """Apply events in order, then move on; one copy of the state for all of them."""
    work = Work(rollout, now)
    for event in events:
        _apply(work, event)
    _move_on(work)
    return work.result(), work.effects


def _apply(work: Work, event: ev.Event) -> None:
    """Change the state by one event; whatever follows from it is left to `_move_on`."""
    match event:
        case ev.Assigned():
            reports.assigned(work, event)
        case ev.Delivered():
            reports.delivered(work, event)
        case ev.DeviceReported():
            reports.reported(work, event)
        case ev.Connectivity():
            reports.connectivity(work, event)
        case ev.Dropped():
            reports.dropped(work, event)
        case ev.Superseded():
            reports.superseded(work, event)
        case ev.Joined():
            reports.joined(work, event)
        case ev.Tick():
            work.ticked = True
            work.comparison = event.comparison
        case ev.RollbackReady():
            rolling_back.ready(work, event)
        case ev.RollbackImpossible():
            rolling_back.impossible(work, event)
        case ev.Started():
            _start(work)
        case _:
            people.command(work, event)


def _start(work: Work) -> None:
    if work.state is not RolloutState.DRAFT:
        return
    if work.plan.needs_approval or work.plan.approve_each_wave:
        work.enter(RolloutState.PENDING_APPROVAL, "waits for a second person")
    else:
        work.enter(RolloutState.SCHEDULED, "")


def _move_on(work: Work) -> None:
    """Let timers run out, judge, and offer, until nothing changes any more."""
    if work.state is RolloutState.SCHEDULED and work.now >= work.plan.start_at:
        work.enter(RolloutState.RUNNING, "")
    if work.state in TIMED_STATES:
        reports.run_timers(work)
    if work.state in JUDGING_STATES or work.state is RolloutState.COMPLETED:
        judging.judge_passed_waves(work)
    while work.state in JUDGING_STATES and judging.advance(work):
        pass
    if work.state in JUDGING_STATES | {RolloutState.SCHEDULED}:
        judging.end_if_nothing_is_left(work)
    if work.state is RolloutState.ROLLING_BACK:
        rolling_back.finish(work)
