"""A rollout while it is being changed: its parts, and the few ways to change them.

`Work` lives for one call of `fleet.rollouts.machine.run`.  What happens to it is in the modules
beside: `reports` (devices), `people` (verbs), `judging` (waves), `rolling_back`.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from fleet.rollouts import events as ev
from fleet.rollouts.model import (
    FAILURES,
    GONE,
    IN_FLIGHT,
    PROGRESS,
    RESPONDED,
    SETTLED,
    Assignment,
    AssignmentPhase,
    Comparison,
    Rollout,
    RolloutState,
    Wave,
)

RANK = {phase: rank for rank, phase in enumerate(PROGRESS)}
ACTIVATING = RANK[AssignmentPhase.ACTIVATING]

Phases = Counter[AssignmentPhase]
"""How many devices are in which phase."""

WaveCounts = defaultdict[str, Phases]
"""Hardware profile → its devices' phases."""


class Work:
    """See the module.

    Attributes:
        ticked: time passed; without a tick no soak is judged, because figures come with one.
        effects: what is asked for, in order.
    """

    def __init__(self, rollout: Rollout, now: float) -> None:
        self._rollout = rollout
        self._counts: dict[int, WaveCounts] | None = None
        self._queued: Counter[int] = Counter()
        self.now = now
        self.plan = rollout.plan
        self.state = rollout.state
        self.reason = rollout.reason
        self.current = rollout.current
        self.awaiting_release = rollout.awaiting_release
        self.waves = list(rollout.waves)
        self.assignments = dict(rollout.assignments)
        self.ticked = False
        self.comparison: Comparison | None = None
        self.effects: list[ev.Effect] = []

    def result(self) -> Rollout:
        return self._rollout.model_copy(
            update={
                "state": self.state,
                "reason": self.reason,
                "current": self.current,
                "awaiting_release": self.awaiting_release,
                "waves": tuple(self.waves),
                "assignments": self.assignments,
            }
        )

    @property
    def wave(self) -> Wave:
        """The wave that is worked on."""
        return self.waves[self.current]

    def enter(self, state: RolloutState, reason: str, actor: str = "orchestrator") -> None:
        self.effects.append(
            ev.StateChanged(before=self.state, after=state, reason=reason, actor=actor)
        )
        self.state, self.reason = state, reason

    def update_wave(self, index: int, **fields: object) -> Wave:
        self.waves[index] = self.waves[index].model_copy(update=fields)
        return self.waves[index]

    def update(self, mine: Assignment, **fields: object) -> Assignment:
        changed = mine.model_copy(update=fields)
        self.assignments[mine.device] = changed
        if self._counts is not None:
            self._count(self._counts, mine, -1)
            self._count(self._counts, changed, 1)
        return changed

    def add(self, mine: Assignment) -> None:
        """A device that was not among them."""
        self.assignments[mine.device] = mine
        if self._counts is not None:
            self._count(self._counts, mine, 1)

    def enter_phase(
        self, mine: Assignment, phase: AssignmentPhase, reason: str = "", detail: str = ""
    ) -> Assignment:
        failed_in = mine.phase if phase in FAILURES else None
        return self.update(
            mine, phase=phase, since=self.now, failed_in=failed_in, reason=reason, detail=detail
        )

    def withdraw(self, mine: Assignment, *, owned_only: bool = True) -> None:
        if mine.generation and (mine.owned or not owned_only):
            self.effects.append(
                ev.Withdraw(device=mine.device, generation=mine.generation, previous=mine.previous)
            )

    def stop(self, state: RolloutState, reason: str, actor: str) -> None:
        """Offer nothing more; take back what failed, and what no device has begun to activate.

        A trial ends everywhere: the version before has never left.
        """
        for mine in list(self.assignments.values()):
            if mine.phase is AssignmentPhase.QUEUED:
                self.enter_phase(mine, AssignmentPhase.CANCELLED, state.lower())
            elif self.plan.is_trial:
                self.withdraw(mine)
                if mine.phase not in RESPONDED | GONE:
                    self.enter_phase(mine, AssignmentPhase.CANCELLED, state.lower())
            elif mine.phase in FAILURES:
                # its failure still counts; a twin that went on naming the version would offer it
                # again to a device that lost its memory, and to the roll-back of a later rollout
                self.withdraw(mine)
            elif mine.phase is AssignmentPhase.UNREACHABLE or (
                mine.phase in IN_FLIGHT and RANK[mine.phase] < ACTIVATING
            ):
                self.withdraw(mine)
                self.enter_phase(mine, AssignmentPhase.CANCELLED, state.lower())
        self.enter(state, reason, actor)

    def counts(self, index: int) -> WaveCounts:
        """Devices of a wave by phase; of those that came late only the ones that responded."""
        if self._counts is None:
            self._counts = {wave.index: defaultdict(Counter) for wave in self.waves}
            for mine in self.assignments.values():
                self._count(self._counts, mine, 1)
        return self._counts[index]

    def queued(self, index: int) -> int:
        """Devices of a wave whose assignment nobody has asked for."""
        self.counts(index)
        return self._queued[index]

    def _count(self, counts: dict[int, WaveCounts], mine: Assignment, number: int) -> None:
        if mine.phase is AssignmentPhase.QUEUED and not mine.asked:
            self._queued[mine.wave] += number
        if not mine.late or mine.phase in RESPONDED:
            counts[mine.wave][mine.profile][mine.phase] += number


def under_way(phases: Phases) -> int:
    """How many a wave still waits for."""
    return phases.total() - sum(phases[phase] for phase in SETTLED)
