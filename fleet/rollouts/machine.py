"""The transitions of a rollout: (state, events, now) → (state, effects).

Pure: no clock, no randomness, no I/O.  An event that does not fit the state changes nothing, so a
driver may repeat events; a person's verb is checked beforehand with `VERBS`.

After the events of a call the rollout moves on as far as it can: timers run out, waves are judged,
the next wave is offered.  A `Tick` is the event with which time alone does that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fleet.rollouts import events as ev
from fleet.rollouts.gates import PERSON_GATE, comparison_gates, failure_gate
from fleet.rollouts.model import (
    FAILURES,
    GONE,
    IN_FLIGHT,
    JUDGING_STATES,
    PROGRESS,
    REPORTED_FAILURES,
    RESPONDED,
    SETTLED,
    Assignment,
    AssignmentPhase,
    Comparison,
    Rollout,
    RolloutState,
    Wave,
    WaveState,
    Window,
)

_RANK = {phase: rank for rank, phase in enumerate(PROGRESS)}
_ACTIVATING = _RANK[AssignmentPhase.ACTIVATING]
_UNSTARTED = frozenset({RolloutState.PENDING_APPROVAL, RolloutState.SCHEDULED})
_GIVEN_UP = frozenset({RolloutState.CANCELLED, RolloutState.HALTED})
_STOPPED = _GIVEN_UP | {RolloutState.COMPLETED}

WAITS_FOR_ITS_OPERATOR = frozenset({"paused", "outside_window"})
"""Reasons by which a device says that its own operator lets it wait.  That is no failure: after the
time-out the wave goes on without it, and it may still come."""

VERBS: Mapping[str, frozenset[RolloutState]] = {
    "approve": frozenset({RolloutState.PENDING_APPROVAL}),
    "pause": frozenset({RolloutState.RUNNING, RolloutState.WINDOW_WAIT}),
    "resume": frozenset({RolloutState.PAUSED}),
    "cancel": _UNSTARTED | JUDGING_STATES,
    "halt": _UNSTARTED | JUDGING_STATES,
    "rollback": JUDGING_STATES | _STOPPED,
}
"""What a person may ask for in which states."""


def step(rollout: Rollout, event: ev.Event, now: float) -> tuple[Rollout, list[ev.Effect]]:
    """Apply one event at `now` (seconds since the epoch)."""
    return run(rollout, (event,), now)


def run(
    rollout: Rollout, events: Sequence[ev.Event], now: float
) -> tuple[Rollout, list[ev.Effect]]:
    """Apply events in order, then move on; one copy of the state for all of them."""
    work = _Work(rollout, now)
    for event in events:
        work.apply(event)
    work.move_on()
    return work.result(), work.effects


def is_open(windows: Sequence[Window], now: float) -> bool:
    """Whether `now` lies in one of the windows; no window means always."""
    minute = int(now // 60) % 1440
    return not windows or any(
        (window.start_minute <= minute < window.end_minute)
        if window.start_minute < window.end_minute
        else (minute >= window.start_minute or minute < window.end_minute)
        for window in windows
    )


class _Work:
    """A rollout being changed; lives for one call of `run`."""

    def __init__(self, rollout: Rollout, now: float) -> None:
        self._rollout = rollout
        self._now = now
        self._plan = rollout.plan
        self._state = rollout.state
        self._reason = rollout.reason
        self._current = rollout.current
        self._awaiting_release = rollout.awaiting_release
        self._waves = list(rollout.waves)
        self._assignments = dict(rollout.assignments)
        self._ticked = False
        self._comparison: Comparison | None = None
        self.effects: list[ev.Effect] = []

    def result(self) -> Rollout:
        return self._rollout.model_copy(
            update={
                "state": self._state,
                "reason": self._reason,
                "current": self._current,
                "awaiting_release": self._awaiting_release,
                "waves": tuple(self._waves),
                "assignments": self._assignments,
            }
        )

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def apply(self, event: ev.Event) -> None:
        """Change the state by one event; whatever follows from it is left to `move_on`."""
        match event:
            case ev.Assigned():
                self._assigned(event)
            case ev.Delivered():
                self._delivered(event)
            case ev.DeviceReported():
                self._reported(event)
            case ev.Connectivity():
                self._connectivity(event)
            case ev.Dropped():
                self._dropped(event)
            case ev.Tick():
                self._ticked = True
                self._comparison = event.comparison
            case ev.RollbackReady():
                self._roll_back_to(event)
            case ev.RollbackImpossible():
                if self._awaiting_release:
                    self._awaiting_release = False
                    self._enter(RolloutState.HALTED, f"roll-back impossible: {event.reason}")
            case ev.Started():
                if self._state is RolloutState.DRAFT:
                    self._enter(
                        RolloutState.PENDING_APPROVAL
                        if self._plan.needs_approval
                        else RolloutState.SCHEDULED,
                        "",
                    )
            case _:
                self._command(event)

    def _command(
        self, event: ev.Approved | ev.Pause | ev.Resume | ev.Cancel | ev.Halt | ev.Rollback
    ) -> None:
        verb = "approve" if isinstance(event, ev.Approved) else event.kind
        if self._state not in VERBS[verb]:
            return
        match event:
            case ev.Approved():
                self._enter(RolloutState.SCHEDULED, "", event.actor)
            case ev.Pause():
                self._enter(RolloutState.PAUSED, f"paused by {event.actor}", event.actor)
            case ev.Resume():
                self._resume(event.actor)
            case ev.Cancel():
                self._stop(RolloutState.CANCELLED, f"cancelled by {event.actor}", event.actor)
            case ev.Halt():
                reason = f"halted by {event.actor}"
                reason += f": {event.reason}" if event.reason else ""
                self._stop(RolloutState.HALTED, reason, event.actor)
            case ev.Rollback():
                self._roll_back(event.actor)

    def _resume(self, actor: str) -> None:
        wave = self._waves[self._current]
        self._enter(RolloutState.RUNNING, "", actor)
        if wave.state is WaveState.INCONCLUSIVE:
            self.effects.append(
                ev.GateDecided(
                    wave=wave.index,
                    gate=PERSON_GATE,
                    verdict="pass",
                    reason=f"accepted by {actor}: {wave.reason}"[:500],
                    evidence={"actor": actor},
                )
            )
            self._end_wave(WaveState.PASSED, f"accepted by {actor}")
            self._next_wave()

    def _assigned(self, event: ev.Assigned) -> None:
        mine = self._assignments.get(event.device)
        if mine is None or event.generation <= mine.generation:
            return
        first = mine.generation == 0
        mine = self._update(
            mine,
            generation=event.generation,
            previous=event.previous if first else mine.previous,
            delivered_at=None,
        )
        if mine.phase is AssignmentPhase.QUEUED:
            self._enter_phase(mine, AssignmentPhase.OFFERED)
        elif mine.phase in GONE:  # it was stopped between the effect and its execution
            self._withdraw(mine)

    def _delivered(self, event: ev.Delivered) -> None:
        mine = self._assignments.get(event.device)
        if (
            mine is not None
            and mine.phase in (AssignmentPhase.OFFERED, AssignmentPhase.UNREACHABLE)
            and mine.delivered_at is None
            and event.generation >= mine.generation > 0
        ):
            mine = self._update(mine, delivered_at=self._now)
            self._enter_phase(mine, AssignmentPhase.OFFERED)

    def _reported(self, event: ev.DeviceReported) -> None:
        mine = self._assignments.get(event.device)
        if mine is None or event.generation != mine.generation or mine.generation == 0:
            return
        phase = AssignmentPhase.OFFERED if event.phase is AssignmentPhase.QUEUED else event.phase
        if mine.delivered_at is None:
            mine = self._update(mine, delivered_at=self._now, since=self._now)
        if phase is mine.phase and event.reason in WAITS_FOR_ITS_OPERATOR:
            self._update(mine, reason=event.reason, detail=event.detail)
        elif _follows(mine.phase, phase):
            self._enter_phase(mine, phase, event.reason, event.detail)
            if phase in REPORTED_FAILURES and self._state in _GIVEN_UP:
                self._withdraw(mine)

    def _connectivity(self, event: ev.Connectivity) -> None:
        mine = self._assignments.get(event.device)
        if mine is None:
            return
        mine = self._update(mine, online=event.online)
        returned = mine.phase is AssignmentPhase.UNREACHABLE and event.online
        if returned and mine.delivered_at is not None:
            self._enter_phase(mine, AssignmentPhase.OFFERED)

    def _dropped(self, event: ev.Dropped) -> None:
        mine = self._assignments.get(event.device)
        if mine is None:
            return
        mine = self._update(mine, owned=False)
        if mine.phase not in RESPONDED | GONE:
            self._enter_phase(mine, event.phase, event.reason)

    # ── moving on ────────────────────────────────────────────────────────────────────────────────

    def move_on(self) -> None:
        """Let timers run out, judge, and offer, until nothing changes any more."""
        if self._state is RolloutState.SCHEDULED and self._now >= self._plan.start_at:
            self._enter(RolloutState.RUNNING, "")
        if self._state in JUDGING_STATES or self._state is RolloutState.ROLLING_BACK:
            self._run_timers()
        if self._state in JUDGING_STATES:
            self._judge_passed_waves()
        while self._state in JUDGING_STATES and self._advance():
            pass
        if self._state is RolloutState.ROLLING_BACK and not self._awaiting_release:
            self._finish_rollback()

    def _run_timers(self) -> None:
        for mine in list(self._assignments.values()):
            if mine.phase not in IN_FLIGHT:
                continue
            waited_s = self._now - mine.since
            if mine.delivered_at is None:
                if waited_s >= self._plan.reach_timeout_s:
                    self._enter_phase(mine, AssignmentPhase.UNREACHABLE, "not_confirmed")
                continue
            limit_s = self._plan.phase_timeout_s
            if mine.phase is AssignmentPhase.PROBATION:
                limit_s += self._plan.probation_s
            if waited_s < limit_s:
                continue
            if not mine.online and _RANK[mine.phase] < _ACTIVATING:
                self._enter_phase(mine, AssignmentPhase.UNREACHABLE, "offline")
            elif mine.reason in WAITS_FOR_ITS_OPERATOR:
                self._enter_phase(mine, AssignmentPhase.UNREACHABLE, mine.reason)
            else:
                self._enter_phase(mine, AssignmentPhase.TIMED_OUT, f"no_progress_{mine.phase}")

    def _judge_passed_waves(self) -> None:
        """A device may fail after its wave had passed; that stops the rollout, too."""
        counts = self._counts()
        for wave in self._waves[: self._current]:
            decision = self._failure_gate(wave, counts[wave.index], final=False)
            if decision is not None and decision.verdict == "fail":
                self._fail(wave, [decision])
                return

    def _advance(self) -> bool:
        """One move of the current wave; whether there was one."""
        wave = self._waves[self._current]
        if wave.state is WaveState.PENDING:
            return self._offer(wave)
        counts = self._counts()[wave.index]
        decision = self._failure_gate(wave, counts, final=False)
        if decision is not None and decision.verdict == "fail":
            self._fail(wave, [decision])
            return True
        if wave.state is WaveState.OFFERING and not _under_way(counts):
            self._waves[wave.index] = wave.model_copy(
                update={"state": WaveState.SOAKING, "settled_at": self._now}
            )
            return True
        if wave.state is WaveState.SOAKING and self._state is RolloutState.RUNNING:
            return self._end_soak(wave, counts)
        return False

    def _offer(self, wave: Wave) -> bool:
        if self._state is RolloutState.PAUSED:
            return False
        if not is_open(self._plan.windows, self._now):
            if self._state is RolloutState.RUNNING:
                self._enter(RolloutState.WINDOW_WAIT, "waiting for a window")
            return False
        if self._state is RolloutState.WINDOW_WAIT:
            self._enter(RolloutState.RUNNING, "")
        self._waves[wave.index] = wave.model_copy(
            update={"state": WaveState.OFFERING, "started_at": self._now}
        )
        self.effects.extend(
            ev.Assign(device=mine.device, release=mine.release)
            for mine in self._assignments.values()
            if mine.wave == wave.index and mine.phase is AssignmentPhase.QUEUED
        )
        return True

    def _end_soak(self, wave: Wave, counts: Counter[AssignmentPhase]) -> bool:
        if wave.settled_at is None or self._now < wave.settled_at + wave.soak_s:
            return False
        if not self._ticked:  # the figures come with a tick; without them nothing is judged
            return False
        failures = self._failure_gate(wave, counts, final=True)
        comparison = self._comparison or Comparison()
        decisions = comparison_gates(wave.index, comparison, self._plan.gate)
        failed = [each for each in decisions if each.verdict == "fail"]
        if failures is None or failed:
            self._fail(wave, failed)
            return True
        self.effects.extend((failures, *decisions))
        if failures.verdict == "pass":
            self._end_wave(WaveState.PASSED, failures.reason)
            self._next_wave()
        else:
            self._end_wave(WaveState.INCONCLUSIVE, failures.reason)
            self._enter(
                RolloutState.PAUSED, f"wave {wave.index + 1} is inconclusive: {failures.reason}"
            )
        return True

    def _next_wave(self) -> None:
        if self._current + 1 < len(self._waves):
            self._current += 1
            return
        phases = Counter(mine.phase for mine in self._assignments.values())
        summary = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
        self._enter(RolloutState.COMPLETED, summary)

    def _end_wave(self, state: WaveState, reason: str) -> None:
        self._waves[self._current] = self._waves[self._current].model_copy(
            update={"state": state, "ended_at": self._now, "reason": reason}
        )

    def _fail(self, wave: Wave, decisions: Sequence[ev.GateDecided]) -> None:
        self.effects.extend(decisions)
        reason = decisions[0].reason if decisions else "a gate gave no verdict"
        self._waves[wave.index] = wave.model_copy(
            update={"state": WaveState.FAILED, "ended_at": self._now, "reason": reason}
        )
        self._stop(RolloutState.HALTED, f"wave {wave.index + 1}: {reason}", "gate")

    def _stop(self, state: RolloutState, reason: str, actor: str) -> None:
        """Offer nothing more; take back what failed, and what no device has begun to activate."""
        for mine in list(self._assignments.values()):
            if mine.phase is AssignmentPhase.QUEUED:
                self._enter_phase(mine, AssignmentPhase.CANCELLED, state.lower())
            elif mine.phase in FAILURES:
                # its failure still counts; a twin that went on naming the version would offer it
                # again to a device that lost its memory, and to the roll-back of a later rollout
                self._withdraw(mine)
            elif mine.phase is AssignmentPhase.UNREACHABLE or (
                mine.phase in IN_FLIGHT and _RANK[mine.phase] < _ACTIVATING
            ):
                self._withdraw(mine)
                self._enter_phase(mine, AssignmentPhase.CANCELLED, state.lower())
        self._enter(state, reason, actor)

    # ── rolling back ─────────────────────────────────────────────────────────────────────────────

    def _roll_back(self, actor: str) -> None:
        self._stop(RolloutState.ROLLING_BACK, f"roll-back by {actor}", actor)
        targets = {
            mine.previous.release.target
            for mine in self._assignments.values()
            if mine.previous is not None and mine.owned
        }
        if targets:
            self._awaiting_release = True
            self.effects.append(ev.PublishPrevious(targets=tuple(sorted(targets))))

    def _roll_back_to(self, event: ev.RollbackReady) -> None:
        if not self._awaiting_release:
            return
        self._awaiting_release = False
        for mine in list(self._assignments.values()):
            if mine.previous is None or not mine.owned:
                continue
            release = event.releases.get(mine.previous.release.target)
            if release is None:
                continue
            mine = self._update(mine, release=release, delivered_at=None)
            self._enter_phase(mine, AssignmentPhase.QUEUED)
            self.effects.append(ev.Assign(device=mine.device, release=release))

    def _finish_rollback(self) -> None:
        if all(mine.phase in SETTLED for mine in self._assignments.values()):
            back = [
                mine
                for mine in self._assignments.values()
                if mine.release != self._plan.releases.get(mine.profile)
            ]
            done = sum(mine.phase is AssignmentPhase.HEALTHY for mine in back)
            self._enter(
                RolloutState.ROLLED_BACK,
                f"{done} of {len(back)} devices are back"
                if back
                else "no device had an earlier version",
            )

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _enter(self, state: RolloutState, reason: str, actor: str = "orchestrator") -> None:
        self.effects.append(
            ev.StateChanged(before=self._state, after=state, reason=reason, actor=actor)
        )
        self._state, self._reason = state, reason

    def _update(self, mine: Assignment, **fields: object) -> Assignment:
        changed = mine.model_copy(update=fields)
        self._assignments[mine.device] = changed
        return changed

    def _enter_phase(
        self, mine: Assignment, phase: AssignmentPhase, reason: str = "", detail: str = ""
    ) -> None:
        self._update(mine, phase=phase, since=self._now, reason=reason, detail=detail)

    def _withdraw(self, mine: Assignment) -> None:
        if mine.generation and mine.owned:
            self.effects.append(
                ev.Withdraw(device=mine.device, generation=mine.generation, previous=mine.previous)
            )

    def _counts(self) -> dict[int, Counter[AssignmentPhase]]:
        counts: dict[int, Counter[AssignmentPhase]] = {
            wave.index: Counter() for wave in self._waves
        }
        for mine in self._assignments.values():
            counts[mine.wave][mine.phase] += 1
        return counts

    def _failure_gate(
        self, wave: Wave, counts: Counter[AssignmentPhase], *, final: bool
    ) -> ev.GateDecided | None:
        return failure_gate(
            wave.index,
            responders=sum(counts[phase] for phase in RESPONDED),
            failures=sum(counts[phase] for phase in FAILURES),
            under_way=_under_way(counts),
            unreachable=counts[AssignmentPhase.UNREACHABLE],
            final=final,
            spec=self._plan.gate,
        )


def _under_way(counts: Counter[AssignmentPhase]) -> int:
    return counts.total() - sum(counts[phase] for phase in SETTLED)


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
    if before is AssignmentPhase.UNREACHABLE or after not in _RANK:
        return True
    return _RANK[after] > _RANK[before]
