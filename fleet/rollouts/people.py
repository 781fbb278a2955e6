"""What people do to a rollout.

Rules:
    * A verb that does not fit the state changes nothing; `VERBS` says beforehand what fits.
    * Nobody approves their own rollout: an approval by the plan's `created_by` changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from fleet.rollouts import events as ev
from fleet.rollouts import judging, rolling_back
from fleet.rollouts.gates import PERSON_GATE
from fleet.rollouts.model import JUDGING_STATES, RolloutState, WaveState
from fleet.rollouts.reports import GIVEN_UP
from fleet.rollouts.work import Work

APPROVAL_GATE = "approval"

_UNSTARTED = frozenset({RolloutState.PENDING_APPROVAL, RolloutState.SCHEDULED})
_STOPPED = GIVEN_UP | {RolloutState.COMPLETED}

VERBS: Mapping[str, frozenset[RolloutState]] = {
    "approve": frozenset({RolloutState.PENDING_APPROVAL}),
    "pause": frozenset({RolloutState.RUNNING, RolloutState.WINDOW_WAIT}),
    "resume": frozenset({RolloutState.PAUSED}),
    "cancel": _UNSTARTED | JUDGING_STATES,
    "halt": _UNSTARTED | JUDGING_STATES,
    "rollback": JUDGING_STATES | _STOPPED,
}
"""What a person may ask for in which states."""

Command = ev.Approved | ev.Pause | ev.Resume | ev.Cancel | ev.Halt | ev.Rollback


def command(work: Work, event: Command) -> None:
    verb = "approve" if isinstance(event, ev.Approved) else event.kind
    if work.state not in VERBS[verb]:
        return
    match event:
        case ev.Approved():
            _approve(work, event.actor)
        case ev.Pause():
            work.enter(RolloutState.PAUSED, f"paused by {event.actor}", event.actor)
        case ev.Resume():
            _resume(work, event.actor)
        case ev.Cancel():
            work.stop(RolloutState.CANCELLED, f"cancelled by {event.actor}", event.actor)
        case ev.Halt():
            reason = f"halted by {event.actor}"
            reason += f": {event.reason}" if event.reason else ""
            work.stop(RolloutState.HALTED, reason, event.actor)
        case ev.Rollback():
            rolling_back.begin(work, event.actor)


def may_approve(created_by: str, actor: str) -> bool:
    """Whether `actor` is another person than who created the plan."""
    return not created_by or actor != created_by


def _approve(work: Work, actor: str) -> None:
    if not may_approve(work.plan.created_by, actor):
        return
    wave = work.update_wave(work.current, approved_by=actor)
    _record(work, APPROVAL_GATE, f"approved by {actor}", actor)
    if wave.index == 0:
        work.enter(RolloutState.SCHEDULED, "", actor)
    else:
        work.enter(RolloutState.RUNNING, "", actor)


def _resume(work: Work, actor: str) -> None:
    wave = work.wave
    work.enter(RolloutState.RUNNING, "", actor)
    if wave.state is WaveState.INCONCLUSIVE:
        _record(work, PERSON_GATE, f"accepted by {actor}: {wave.reason}"[:500], actor)
        judging.end_wave(work, WaveState.PASSED, f"accepted by {actor}")
        judging.next_wave(work)


def _record(work: Work, gate: str, reason: str, actor: str) -> None:
    work.effects.append(
        ev.GateDecided(
            wave=work.current,
            gate=gate,
            verdict="pass",
            reason=reason,
            evidence={"actor": actor},
        )
    )
