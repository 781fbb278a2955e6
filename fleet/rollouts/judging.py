"""How waves move on: offered, settled, soaked, judged; and what a failed one does.

Rules:
    * A wave is offered only after the one before it passed, in a window, and with its approval.
    * Inside a wave that is under way nothing new is offered while paused or outside the windows.
    * A wave that failed stays failed and halts the rollout; by the plan it is rolled back, too.
    * Devices may fail after their wave passed, and after the rollout completed: that halts it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fleet.rollouts import events as ev
from fleet.rollouts import rolling_back, windows
from fleet.rollouts.gates import WaveOutcomes, comparison_gates, failure_gate
from fleet.rollouts.model import (
    FAILURES,
    RESPONDED,
    AssignmentPhase,
    Comparison,
    RolloutState,
    Wave,
    WaveState,
)
from fleet.rollouts.work import Work, under_way

_MAY_WAIT_FOR_WINDOW = frozenset({RolloutState.RUNNING, RolloutState.WINDOW_WAIT})


def judge_passed_waves(work: Work) -> None:
    """A device may fail after its wave had passed; that stops the rollout, too."""
    ended = work.state is RolloutState.COMPLETED
    for wave in work.waves if ended else work.waves[: work.current]:
        decision = _failures(work, wave, final=False)
        if decision is not None and decision.verdict == "fail":
            fail(work, wave, [decision])
            return


def advance(work: Work) -> bool:
    """One move of the current wave; whether there was one."""
    wave = work.wave
    if wave.state is WaveState.PENDING:
        return _offer_wave(work, wave)
    decision = _failures(work, wave, final=False)
    if decision is not None and decision.verdict == "fail":
        fail(work, wave, [decision])
        return True
    if wave.state not in (WaveState.OFFERING, WaveState.SOAKING):
        return False
    if work.state is RolloutState.RUNNING and _open(work) and _assign_queued(work, wave):
        return True
    if wave.state is WaveState.OFFERING and not any(
        under_way(phases) for phases in work.counts(wave.index).values()
    ):
        work.update_wave(wave.index, state=WaveState.SOAKING, settled_at=work.now)
        return True
    if wave.state is WaveState.SOAKING and work.state is RolloutState.RUNNING:
        return _end_soak(work, wave)
    return False


def end_if_nothing_is_left(work: Work) -> None:
    """A rollout whose every device was taken or revoked has nothing to do any more."""
    if any(mine.owned for mine in work.assignments.values()):
        return
    reasons = Counter(str(mine.phase) for mine in work.assignments.values())
    summary = ", ".join(f"{count} {phase}" for phase, count in sorted(reasons.items()))
    work.enter(RolloutState.CANCELLED, f"newer assignments have every device: {summary}")


def next_wave(work: Work) -> None:
    if work.current + 1 < len(work.waves):
        work.current += 1
        return
    phases = Counter(mine.phase for mine in work.assignments.values())
    summary = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
    work.enter(RolloutState.COMPLETED, summary)


def end_wave(work: Work, state: WaveState, reason: str) -> None:
    work.update_wave(work.current, state=state, ended_at=work.now, reason=reason)


def fail(work: Work, wave: Wave, decisions: Sequence[ev.GateDecided]) -> None:
    completed = work.state is RolloutState.COMPLETED
    work.effects.extend(decisions)
    reason = decisions[0].reason if decisions else "a gate gave no verdict"
    work.update_wave(wave.index, state=WaveState.FAILED, ended_at=work.now, reason=reason)
    work.stop(RolloutState.HALTED, f"wave {wave.index + 1}: {reason}", "gate")
    if work.plan.on_failure == "rollback" and not completed:
        rolling_back.begin(work, "gate")


def _offer_wave(work: Work, wave: Wave) -> bool:
    if work.state not in _MAY_WAIT_FOR_WINDOW:
        return False
    if work.plan.approve_each_wave and not wave.approved_by:
        work.enter(
            RolloutState.PENDING_APPROVAL, f"wave {wave.index + 1} waits for a second person"
        )
        return False
    if not _open(work):
        if work.state is RolloutState.RUNNING:
            work.enter(RolloutState.WINDOW_WAIT, "waiting for a window")
        return False
    if work.state is RolloutState.WINDOW_WAIT:
        work.enter(RolloutState.RUNNING, "")
    if wave.index == 0:
        work.effects.append(ev.Supersede(devices=tuple(work.assignments)))
    work.update_wave(wave.index, state=WaveState.OFFERING, started_at=work.now)
    _assign_queued(work, wave)
    return True


def _assign_queued(work: Work, wave: Wave) -> bool:
    """Ask for what is queued of a wave under way; whether anything was asked for now."""
    if not work.queued(wave.index):
        return False
    asked = False
    for mine in list(work.assignments.values()):
        if mine.wave == wave.index and mine.phase is AssignmentPhase.QUEUED and not mine.asked:
            work.update(mine, asked=True)
            work.effects.append(ev.Assign(device=mine.device, release=mine.release))
            asked = True
    return asked


def _open(work: Work) -> bool:
    return windows.is_open(work.plan.windows, work.plan.time_zone, work.now)


def _end_soak(work: Work, wave: Wave) -> bool:
    if wave.settled_at is None or work.now < wave.settled_at + wave.soak_s:
        return False
    if not work.ticked:  # the figures come with a tick; without them nothing is judged
        return False
    failures = _failures(work, wave, final=True)
    comparison = work.comparison or Comparison()
    decisions = comparison_gates(wave.index, comparison, work.plan.gate)
    if failures is None:
        fail(work, wave, [])
        return True
    failed = [each for each in (failures, *decisions) if each.verdict == "fail"]
    work.effects.extend(each for each in (failures, *decisions) if each not in failed)
    undecided = failures if failures.verdict == "insufficient" else None
    if work.plan.gate.require_comparison and undecided is None:
        lacking = [each for each in decisions if each.verdict == "insufficient"]
        undecided = lacking[0] if len(lacking) == len(decisions) else None
    if failed:
        fail(work, wave, failed)
    elif undecided is None:
        end_wave(work, WaveState.PASSED, failures.reason)
        next_wave(work)
    else:
        end_wave(work, WaveState.INCONCLUSIVE, undecided.reason)
        work.enter(
            RolloutState.PAUSED, f"wave {wave.index + 1} is inconclusive: {undecided.reason}"
        )
    return True


def _failures(work: Work, wave: Wave, *, final: bool) -> ev.GateDecided | None:
    return failure_gate(
        wave.index,
        outcomes={
            profile: WaveOutcomes(
                responders=sum(phases[phase] for phase in RESPONDED),
                failures=sum(phases[phase] for phase in FAILURES),
                under_way=under_way(phases),
                unreachable=phases[AssignmentPhase.UNREACHABLE],
            )
            for profile, phases in work.counts(wave.index).items()
        },
        history=work.plan.history,
        final=final,
        spec=work.plan.gate,
    )
