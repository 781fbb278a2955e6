"""Giving every device back what it had before, under new counters.

A device never takes a lower counter, so the old bytes are published again first.  Devices that a
newer assignment took are left alone; those that nobody reaches now read it from their twins.

A version that was only tried is dropped: nothing has to come back.
"""

from __future__ import annotations

from fleet.rollouts import events as ev
from fleet.rollouts.model import SETTLED, AssignmentPhase, RolloutState
from fleet.rollouts.work import Work


def begin(work: Work, actor: str) -> None:
    if work.plan.is_trial:
        work.stop(RolloutState.ROLLED_BACK, f"trial dropped by {actor}", actor)
        return
    work.stop(RolloutState.ROLLING_BACK, f"roll-back by {actor}", actor)
    targets = {
        mine.previous.release.target
        for mine in work.assignments.values()
        if mine.previous is not None and mine.owned
    }
    if targets:
        work.awaiting_release = True
        work.effects.append(ev.PublishPrevious(targets=tuple(sorted(targets))))


def ready(work: Work, event: ev.RollbackReady) -> None:
    if not work.awaiting_release:
        return
    work.awaiting_release = False
    for mine in list(work.assignments.values()):
        if mine.previous is None or not mine.owned:
            continue
        release = event.releases.get(mine.previous.release.target)
        if release is None:
            continue
        mine = work.update(mine, release=release, delivered_at=None, restoring=True, asked=True)
        work.enter_phase(mine, AssignmentPhase.QUEUED)
        work.effects.append(ev.Assign(device=mine.device, release=release))


def impossible(work: Work, event: ev.RollbackImpossible) -> None:
    if work.awaiting_release:
        work.awaiting_release = False
        work.enter(RolloutState.HALTED, f"roll-back impossible: {event.reason}")


def finish(work: Work) -> None:
    """End when every device has settled."""
    if work.awaiting_release or any(
        mine.phase not in SETTLED for mine in work.assignments.values()
    ):
        return
    back = [mine for mine in work.assignments.values() if mine.restoring]
    done = sum(mine.phase is AssignmentPhase.HEALTHY for mine in back)
    keep = sum(
        mine.phase is AssignmentPhase.HEALTHY and not mine.restoring and mine.owned
        for mine in work.assignments.values()
    )
    reason = (
        f"{done} of {len(back)} devices are back" if back else "no device had an earlier version"
    )
    if keep:
        reason += f"; {keep} with no earlier version keep this one" if back else ""
    work.enter(RolloutState.ROLLED_BACK, reason)
