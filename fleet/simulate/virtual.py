"""A rollout over virtual devices on a virtual clock.

Real are the rollout machine with its timers, and the gates.  Virtual are the devices: each is
reachable or not, comes back late or not, takes some time in every phase, fails with a probability,
and shows figures while it serves (`virtual_devices`).  No broker, no database.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fleet.devices.select import DeviceRef
from fleet.rollouts import events as ev
from fleet.rollouts.control import sample
from fleet.rollouts.machine import run as run_machine
from fleet.rollouts.model import (
    ACTIVE_STATES,
    PROGRESS,
    AssignmentPhase,
    Comparison,
    GateSpec,
    Outcomes,
    Plan,
    Release,
    Rollout,
    RolloutState,
    WavePlan,
    WaveState,
)
from fleet.rollouts.plan import draft
from fleet.simulate.virtual_devices import Habits, Population, Version, name, number

_PROFILE = "virtual"
_REPORTED = PROGRESS[1:]
_OUTCOMES = (
    AssignmentPhase.REJECTED,
    AssignmentPhase.FAILED,
    AssignmentPhase.LOCAL_ROLLBACK,
)
_MAX_COMPARED = 1000
"""Devices of one side that are compared, as the control plane does."""


@dataclass(frozen=True, slots=True)
class VirtualFleet:
    """What the devices are like.

    Attributes:
        profiles: profile → share of the devices.
        failure_probability: share of devices whose update fails, whatever the version.
        silent_probability: share of those failures that is never reported: the device goes quiet.
        offline_probability: share of devices that do not confirm their assignment.
        late_probability: share of those that come back, `mean_absence_s` later on average.
        churn_probability: share of devices that lose their connection in between, for a while.
        mean_phase_s: mean of the exponentially distributed time in each phase.
        history: updates to the old version whose outcome is known; 0 for the first version.
        habits: what devices show while they serve; None: nothing, so nothing is compared.
        version: how the new version differs from the old one.
        brief: devices report how their update ended, no steps before; for many rollouts.
    """

    devices: int
    profiles: Mapping[str, float] = field(default_factory=lambda: {_PROFILE: 1.0})
    failure_probability: float = 0.0
    silent_probability: float = 0.0
    offline_probability: float = 0.0
    late_probability: float = 0.0
    churn_probability: float = 0.0
    mean_phase_s: float = 5.0
    mean_absence_s: float = 7200.0
    history: int = 0
    habits: Habits | None = None
    version: Version = field(default_factory=Version)
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it.

    Attributes:
        offered: devices that were given the version.
        phases: devices in each phase at the end.
        virtual_s: time that passed on the virtual clock.
        decisions: judgements of the gates, in order.
    """

    state: RolloutState
    reason: str
    waves: tuple[WaveState, ...]
    offered: int
    phases: dict[str, int]
    virtual_s: float
    rollout: Rollout
    decisions: tuple[ev.GateDecided, ...]


def run(
    fleet: VirtualFleet,
    waves: Sequence[WavePlan],
    *,
    gate: GateSpec | None = None,
    seed: int = 0,
    tick_s: float = 5.0,
    limit_s: float = 30 * 86400.0,
) -> Simulated:
    """Roll a version out over `fleet` until the rollout ends or needs a person.

    Args:
        tick_s: virtual seconds between two turns; reports wait for the next turn.
        limit_s: virtual seconds after which the simulation gives up.
    """
    world = _World(fleet, waves, gate or GateSpec(), seed)
    while True:
        world.turn()
        if world.waits_for_nobody or world.now > limit_s:
            break
        world.now += tick_s
    return world.result()


class _World:
    """One rollout, its devices, and what is about to happen."""

    def __init__(
        self, fleet: VirtualFleet, waves: Sequence[WavePlan], gate: GateSpec, seed: int
    ) -> None:
        self.now = 0.0
        self._fleet = fleet
        self._rng = random.Random(seed)
        profiles = list(_deal(fleet.profiles, fleet.devices))
        self._profiles = profiles
        habits = fleet.habits
        self._population = Population(profiles, habits, seed) if habits is not None else None
        plan = Plan(
            model="model",
            version=2,
            releases={
                profile: Release(target=f"models/model/{profile}/2.bundle", version=2, counter=2)
                for profile in fleet.profiles
            },
            gate=gate,
            history=self._history(),
        )
        devices = [DeviceRef(name(index), profile) for index, profile in enumerate(profiles)]
        self._rollout = draft(f"simulated-{seed}", plan, waves, devices)
        self._pending: list[tuple[float, int, ev.Event]] = []
        self._order = 0
        self._offered = 0
        self._decisions: list[ev.GateDecided] = []
        self._events: list[ev.Event] = [ev.Started()]

    @property
    def waits_for_nobody(self) -> bool:
        return self._rollout.state not in ACTIVE_STATES - {RolloutState.PAUSED}

    def turn(self) -> None:
        """One turn at `now`, with what has happened until then."""
        while self._pending and self._pending[0][0] <= self.now:
            self._events.append(heapq.heappop(self._pending)[2])
        while True:
            tick = ev.Tick(comparison=self._comparison())
            self._rollout, effects = run_machine(self._rollout, [*self._events, tick], self.now)
            self._events = []
            for effect in effects:
                if isinstance(effect, ev.GateDecided):
                    self._decisions.append(effect)
                elif isinstance(effect, ev.Assign):
                    self._assign(effect.device)
            if not self._events:
                return

    def result(self) -> Simulated:
        rollout = self._rollout
        phases = Counter(str(mine.phase) for mine in rollout.assignments.values())
        return Simulated(
            state=rollout.state,
            reason=rollout.reason,
            waves=tuple(wave.state for wave in rollout.waves),
            offered=self._offered,
            phases=dict(phases),
            virtual_s=self.now,
            rollout=rollout,
            decisions=tuple(self._decisions),
        )

    def _history(self) -> dict[str, Outcomes]:
        fleet = self._fleet
        return {
            profile: Outcomes(
                responders=count,
                failures=sum(self._rng.random() < fleet.failure_probability for _ in range(count)),
            )
            for profile, share in fleet.profiles.items()
            if (count := round(fleet.history * share))
        }

    def _assign(self, device: str) -> None:
        self._offered += 1
        self._events.append(ev.Assigned(device=device, generation=1))
        for delay_s, event in self._behaviour(device):
            heapq.heappush(self._pending, (self.now + delay_s, self._order, event))
            self._order += 1

    def _comparison(self) -> Comparison | None:
        """Figures of the wave whose soak is over, and of devices not yet offered."""
        rollout = self._rollout
        wave = rollout.waves[rollout.current]
        if (
            self._population is None
            or rollout.state is not RolloutState.RUNNING
            or wave.state is not WaveState.SOAKING
            or wave.settled_at is None
            or self.now < wave.settled_at + wave.soak_s
        ):
            return None
        treated, control = {}, {}
        for mine in rollout.assignments.values():
            if mine.wave == wave.index and mine.phase is AssignmentPhase.HEALTHY:
                treated[mine.device] = mine.profile
            elif mine.wave > wave.index and self._rng.random() >= self._fleet.offline_probability:
                control[mine.device] = mine.profile
        shared = set(treated.values()) & set(control.values())
        return Comparison(
            treated=self._population.metrics(
                [number(d) for d in sample(rollout.id, treated, shared, _MAX_COMPARED)],
                self._fleet.version,
            ),
            control=self._population.metrics(
                [number(d) for d in sample(rollout.id, control, shared, _MAX_COMPARED)], Version()
            ),
        )

    def _behaviour(self, device: str) -> list[tuple[float, ev.Event]]:
        """What a device will send, each with its delay after the assignment."""
        fleet, rng = self._fleet, self._rng
        delay_s = 0.0
        if rng.random() < fleet.offline_probability:
            if rng.random() >= fleet.late_probability:
                return []
            delay_s = rng.expovariate(1 / fleet.mean_absence_s)
        version = fleet.version
        harmed = version.only in ("", self._profiles[number(device)])
        more = version.failure_increase if harmed else 0.0
        fails = rng.random() < fleet.failure_probability + more
        silent = fails and rng.random() < fleet.silent_probability
        last = rng.randrange(1, len(_REPORTED)) if fails else len(_REPORTED)
        sent: list[tuple[float, ev.Event]] = []
        away = rng.randrange(last) if rng.random() < fleet.churn_probability else -1
        for index, phase in enumerate(_REPORTED[:last]):
            delay_s += rng.expovariate(1 / fleet.mean_phase_s)
            if index == away:
                sent.append((delay_s, ev.Connectivity(device=device, online=False)))
                delay_s += rng.expovariate(1 / fleet.mean_phase_s)
                sent.append((delay_s, ev.Connectivity(device=device, online=True)))
            # a device that is to go quiet must have been heard of
            if not fleet.brief or index + 1 == len(_REPORTED) or (silent and index + 1 == last):
                sent.append((delay_s, _report(device, phase)))
        if fails and not silent:
            delay_s += rng.expovariate(1 / fleet.mean_phase_s)
            sent.append((delay_s, _report(device, rng.choice(_OUTCOMES))))
        return sent


def _deal(profiles: Mapping[str, float], devices: int) -> Iterator[str]:
    """A profile for each device, in proportion; rounding goes to the first one."""
    counts = {profile: int(share * devices) for profile, share in profiles.items()}
    counts[next(iter(counts))] += devices - sum(counts.values())
    for profile, count in counts.items():
        yield from [profile] * count


def _report(device: str, phase: AssignmentPhase) -> ev.DeviceReported:
    return ev.DeviceReported(device=device, generation=1, phase=phase)
