"""What devices do to a rollout: they confirm, report, come and go, and let timers run out.

Rules:
    * A report of another generation changes nothing; neither does one that comes again or late.
    * Timers start when the device has confirmed that it knows its assignment.
    * A device that cannot be heard before it switched is UNREACHABLE, which is no failure and not
      final; one that falls silent while it switches has timed out, which is one.
"""

from __future__ import annotations

from fleet.rollouts import events as ev
from fleet.rollouts.model import (
    GONE,
    IN_FLIGHT,
    JUDGING_STATES,
    REPORTED_FAILURES,
    RESPONDED,
    Assignment,
    AssignmentPhase,
    RolloutState,
    WaveState,
)
from fleet.rollouts.work import ACTIVATING, RANK, Work

GIVEN_UP = frozenset({RolloutState.CANCELLED, RolloutState.HALTED})

WAITS_FOR_ITS_OPERATOR = frozenset({"paused", "outside_window"})
"""Reasons by which a device says that its own operator lets it wait.  That is no failure: after the
time-out the wave goes on without it, and it may still come."""


def assigned(work: Work, event: ev.Assigned) -> None:
    mine = work.assignments.get(event.device)
    if mine is None or event.generation <= mine.generation:
        return
    mine = work.update(
        mine,
        generation=event.generation,
        release=event.release or mine.release,
        previous=event.previous if mine.generation == 0 else mine.previous,
        delivered_at=None,
    )
    if mine.phase is AssignmentPhase.QUEUED:
        work.enter_phase(mine, AssignmentPhase.OFFERED)
    elif mine.phase in GONE:  # it was stopped between the effect and its execution
        work.withdraw(mine, owned_only=False)
    elif work.state is RolloutState.COMPLETED and mine.phase not in IN_FLIGHT:
        work.enter_phase(work.update(mine, late=True), AssignmentPhase.OFFERED)  # once more


def delivered(work: Work, event: ev.Delivered) -> None:
    mine = work.assignments.get(event.device)
    if (
        mine is not None
        and mine.phase in (AssignmentPhase.OFFERED, AssignmentPhase.UNREACHABLE)
        and mine.delivered_at is None
        and event.generation >= mine.generation > 0
    ):
        mine = work.update(mine, delivered_at=work.now)
        work.enter_phase(mine, AssignmentPhase.OFFERED)


def reported(work: Work, event: ev.DeviceReported) -> None:
    mine = work.assignments.get(event.device)
    if mine is None or event.generation != mine.generation or mine.generation == 0:
        return
    phase = AssignmentPhase.OFFERED if event.phase is AssignmentPhase.QUEUED else event.phase
    if mine.delivered_at is None:
        mine = work.update(mine, delivered_at=work.now, since=work.now)
    if phase is mine.phase and event.reason in WAITS_FOR_ITS_OPERATOR:
        work.update(mine, reason=event.reason, detail=event.detail)
    elif _follows(mine.phase, phase):
        mine = work.enter_phase(mine, phase, event.reason, event.detail)
        if phase in REPORTED_FAILURES and work.state in GIVEN_UP:
            work.withdraw(mine)


def connectivity(work: Work, event: ev.Connectivity) -> None:
    mine = work.assignments.get(event.device)
    if mine is None:
        return
    mine = work.update(mine, online=event.online)
    returned = mine.phase is AssignmentPhase.UNREACHABLE and event.online
    if returned and mine.delivered_at is not None:
        work.enter_phase(mine, AssignmentPhase.OFFERED)


def dropped(work: Work, event: ev.Dropped) -> None:
    mine = work.assignments.get(event.device)
    if mine is None:
        return
    mine = work.update(mine, owned=False)
    if mine.phase not in RESPONDED | GONE:
        work.enter_phase(mine, event.phase, event.reason)


def superseded(work: Work, event: ev.Superseded) -> None:
    """What waits here is the newer rollout's; what is under way stays until that takes it."""
    for device in event.devices:
        mine = work.assignments.get(device)
        if mine is not None and mine.phase is AssignmentPhase.QUEUED:
            mine = work.update(mine, owned=False)
            work.enter_phase(mine, AssignmentPhase.SUPERSEDED, f"by {event.by}")


def joined(work: Work, event: ev.Joined) -> None:
    """A newcomer is in the last wave; one that comes after its offer keeps nobody waiting."""
    last = work.waves[-1]
    release = work.plan.releases.get(event.profile)
    if (
        not work.plan.takes_newcomers
        or work.state not in JUDGING_STATES | {RolloutState.SCHEDULED}
        or last.state not in (WaveState.PENDING, WaveState.OFFERING, WaveState.SOAKING)
        or event.device in work.assignments
        or release is None
    ):
        return
    work.add(
        Assignment(
            device=event.device,
            profile=event.profile,
            wave=last.index,
            release=release,
            online=event.online,
            late=last.state is not WaveState.PENDING,
            since=work.now,
        )
    )


def run_timers(work: Work) -> None:
    """Let what has waited too long time out."""
    for mine in list(work.assignments.values()):
        if mine.phase not in IN_FLIGHT:
            continue
        waited_s = work.now - mine.since
        if mine.delivered_at is None:
            if waited_s >= work.plan.reach_timeout_s:
                work.enter_phase(mine, AssignmentPhase.UNREACHABLE, "not_confirmed")
            continue
        limit_s = work.plan.phase_timeout_s
        if mine.phase is AssignmentPhase.PROBATION:
            limit_s += work.plan.probation_s
        if waited_s < limit_s:
            continue
        if not mine.online and RANK[mine.phase] < ACTIVATING:
            work.enter_phase(mine, AssignmentPhase.UNREACHABLE, "offline")
        elif mine.reason in WAITS_FOR_ITS_OPERATOR:
            work.enter_phase(mine, AssignmentPhase.UNREACHABLE, mine.reason)
        else:
            work.enter_phase(mine, AssignmentPhase.TIMED_OUT, f"no_progress_{mine.phase}")


def _follows(before: AssignmentPhase, after: AssignmentPhase) -> bool:
    """Whether a device's report may move an assignment from `before` to `after`."""
    if before in REPORTED_FAILURES or before in (
        AssignmentPhase.SUPERSEDED,
        AssignmentPhase.QUEUED,
    ):
        return False
    if before is AssignmentPhase.HEALTHY:
        return after in REPORTED_FAILURES
    if before in (AssignmentPhase.TIMED_OUT, AssignmentPhase.CANCELLED):
        return after in RESPONDED - {before}
    if before is AssignmentPhase.UNREACHABLE or after not in RANK:
        return True
    return RANK[after] > RANK[before]
