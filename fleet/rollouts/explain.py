"""Why a rollout is where it is, in words.  Pure.

Says what its state is and why, what each wave was judged by, which devices the present wave waits
for, and what must happen next.  Whoever shows it adds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fleet.rollouts import windows
from fleet.rollouts.events import GateDecided
from fleet.rollouts.model import (
    FAILURES,
    IN_FLIGHT,
    Assignment,
    AssignmentPhase,
    Rollout,
    RolloutState,
    Wave,
    WaveState,
)

MAX_HELD_UP: Final = 50


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A device that its wave waits for, since `for_s` seconds."""

    device: str
    phase: AssignmentPhase
    for_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """See the module.

    Attributes:
        headline: the state in one sentence.
        lines: what led there and what comes next, a sentence each.
        held_up: the first `MAX_HELD_UP` of `held_up_total` devices, longest wait first.
        waits_for: what must happen for it to go on; empty when nothing must.
    """

    headline: str
    lines: tuple[str, ...]
    held_up: tuple[HeldUp, ...]
    held_up_total: int
    waits_for: str


def explain(rollout: Rollout, decisions: Sequence[GateDecided], now: float) -> Explanation:
    """
    Args:
        decisions: of its gates so far, oldest first.
        now: seconds since the epoch.
    """
    held_up = _held_up(rollout, now)
    headline, waits_for = _state(rollout, len(held_up), now)
    lines = [*_waves(rollout, decisions), *_devices(rollout), *_next(rollout)]
    return Explanation(
        headline=headline,
        lines=tuple(lines),
        held_up=tuple(held_up[:MAX_HELD_UP]),
        held_up_total=len(held_up),
        waits_for=waits_for,
    )


def span(seconds: float) -> str:
    """ "45 s", "3 min", "2.5 h", "4 days"."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def moment(seconds: float) -> str:
    """Time of the day in UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _state(rollout: Rollout, held_up: int, now: float) -> tuple[str, str]:
    """The headline, and what it waits for."""
    wave, number = rollout.waves[rollout.current], len(rollout.waves)
    here = f"wave {wave.index + 1} of {number}"
    plan = rollout.plan
    match rollout.state:
        case RolloutState.DRAFT:
            return "It is a draft.", "its start"
        case RolloutState.PENDING_APPROVAL:
            what = "the rollout" if wave.index == 0 else here
            by = f"; {plan.created_by}, who created it, may not" if plan.created_by else ""
            return (
                f"It waits: a second person must approve {what}{by}.",
                "the approval of a second person",
            )
        case RolloutState.SCHEDULED:
            start = moment(plan.start_at)
            return (
                f"It is scheduled to start at {start}.",
                f"{start}, in {span(plan.start_at - now)}",
            )
        case RolloutState.WINDOW_WAIT:
            opens = windows.next_opening(plan.windows, plan.time_zone, now)
            spans = ", ".join(plan.windows)
            when = f"{moment(opens)}, in {span(opens - now)}" if opens else "its window"
            return (
                f"It waits for a window ({spans} {plan.time_zone}) before it offers {here}.",
                f"the window that opens at {when}" if opens else when,
            )
        case RolloutState.RUNNING:
            return _running(rollout, wave, here, held_up, now)
        case RolloutState.PAUSED:
            return f"It is paused: {rollout.reason}.", "a person who resumes, cancels or rolls back"
        case RolloutState.ROLLING_BACK:
            if rollout.awaiting_release:
                return "It is being rolled back.", "the old release, which is published again"
            left = _many(held_up, "device")
            return f"It is being rolled back: {left} under way.", f"{left} to go back"
        case RolloutState.HALTED:
            return f"It was halted: {rollout.reason}.", ""
        case _:
            return f"It has ended, {rollout.state.lower()}: {rollout.reason}.", ""


def _running(rollout: Rollout, wave: Wave, here: str, held_up: int, now: float) -> tuple[str, str]:
    if wave.state is WaveState.SOAKING and wave.settled_at is not None:
        left_s = wave.settled_at + wave.soak_s - now
        return (
            f"It runs: {here} soaks, every device has answered or was given up.",
            f"the end of the soak, in {span(left_s)}" if left_s > 0 else "figures to judge it by",
        )
    left = _many(held_up, "device")
    return (
        f"It runs: {here} is offered to {_many(len(rollout.of_wave(wave.index)), 'device')}.",
        f"{left} under way" if held_up else "",
    )


def _waves(rollout: Rollout, decisions: Sequence[GateDecided]) -> list[str]:
    lines = []
    for wave in rollout.waves:
        if wave.state in (WaveState.PENDING, WaveState.OFFERING, WaveState.SOAKING):
            continue
        name = f"Wave {wave.index + 1}" + (f" ({wave.what})" if wave.what else "")
        lines.append(f"{name} {wave.state.lower()}: {wave.reason}.")
        newest = {each.gate: each for each in decisions if each.wave == wave.index}
        lines += [
            f"Gate {gate} of wave {wave.index + 1}: {_verdict(each)}"
            for gate, each in newest.items()
            if each.reason != wave.reason
        ]
    return lines


def _verdict(decision: GateDecided) -> str:
    said = {"pass": "passed", "fail": "failed", "insufficient": "could not tell"}
    return f"{said[decision.verdict]}: {decision.reason}."


def _devices(rollout: Rollout) -> list[str]:
    phases = Counter(mine.phase for mine in rollout.assignments.values())
    lines = []
    failed = Counter(
        f"{mine.reason or mine.phase}" + (f" while {mine.failed_in}" if mine.failed_in else "")
        for mine in rollout.assignments.values()
        if mine.phase in FAILURES
    )
    for reason, count in failed.most_common(5):
        lines.append(f"{_many(count, 'device')} failed: {reason}.")
    unreachable = phases[AssignmentPhase.UNREACHABLE]
    if unreachable:
        lines.append(
            f"{_many(unreachable, 'device')} could not be reached; nobody waits for them, they "
            "count in no gate, and they find the version in their twins when they return."
        )
    superseded = phases[AssignmentPhase.SUPERSEDED]
    if superseded:
        lines.append(f"{_many(superseded, 'device')} belong to newer assignments now.")
    late = sum(mine.late for mine in rollout.assignments.values())
    if late:
        lines.append(f"{_many(late, 'device')} joined after their wave was offered.")
    return lines


def _next(rollout: Rollout) -> list[str]:
    if rollout.state is RolloutState.HALTED:
        back = "roll it back, to give every device what it had before"
        return [f"Nothing more is offered; a person may {back}."]
    if rollout.state not in (
        RolloutState.RUNNING,
        RolloutState.PAUSED,
        RolloutState.WINDOW_WAIT,
        RolloutState.PENDING_APPROVAL,
        RolloutState.SCHEDULED,
    ):
        return []
    lines = []
    following = [wave for wave in rollout.waves if wave.state is WaveState.PENDING]
    if following:
        wave = following[0]
        size = _many(len(rollout.of_wave(wave.index)), "device")
        lines.append(f"Next is wave {wave.index + 1} of {len(rollout.waves)} with {size}.")
    consequence = (
        "rolls every device back" if rollout.plan.on_failure == "rollback" else "halts the rollout"
    )
    lines.append(f"A gate that fails {consequence}.")
    return lines


def _held_up(rollout: Rollout, now: float) -> list[HeldUp]:
    wanted = [
        mine
        for mine in rollout.assignments.values()
        if mine.phase in IN_FLIGHT
        and (mine.wave == rollout.current or rollout.state is RolloutState.ROLLING_BACK)
    ]
    return sorted(
        (
            HeldUp(mine.device, mine.phase, max(0.0, now - mine.since), _why(rollout, mine, now))
            for mine in wanted
        ),
        key=lambda each: (-each.for_s, each.device),
    )


def _why(rollout: Rollout, mine: Assignment, now: float) -> str:
    plan = rollout.plan
    offline = "" if mine.online else "offline; "
    if mine.delivered_at is None:
        left_s = mine.since + plan.reach_timeout_s - now
        return f"{offline}has not confirmed; given up in {span(left_s)}"
    limit_s = plan.phase_timeout_s
    if mine.phase is AssignmentPhase.PROBATION:
        limit_s += plan.probation_s
    if mine.reason == "paused":
        return f"{offline}its own operator has paused updates"
    if mine.reason == "outside_window":
        return f"{offline}waits for its own maintenance window"
    return f"{offline}times out in {span(mine.since + limit_s - now)}"


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
