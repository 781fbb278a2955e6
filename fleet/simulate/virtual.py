"""A rollout over virtual devices on a virtual clock.

Real is the rollout machine with its gates and timers.  Virtual are the devices: each is reachable
or not, takes some time in every phase, and fails with a probability.  No broker, no database.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.devices.select import DeviceRef
from fleet.rollouts import events as ev
from fleet.rollouts.machine import run as run_machine
from fleet.rollouts.model import (
    ACTIVE_STATES,
    PROGRESS,
    AssignmentPhase,
    GateSpec,
    Plan,
    Release,
    Rollout,
    RolloutState,
    WavePlan,
    WaveState,
)
from fleet.rollouts.plan import draft

_PROFILE = "virtual"
_REPORTED = PROGRESS[1:]
_OUTCOMES = (
    AssignmentPhase.REJECTED,
    AssignmentPhase.FAILED,
    AssignmentPhase.LOCAL_ROLLBACK,
)


@dataclass(frozen=True, slots=True)
class VirtualFleet:
    """What the devices are like.

    Attributes:
        failure_probability: share of devices whose update fails.
        silent_probability: share of those failures that is never reported: the device goes quiet.
        offline_probability: share of devices that never confirm their assignment.
        mean_phase_s: mean of the exponentially distributed time in each phase.
    """

    devices: int
    failure_probability: float = 0.0
    silent_probability: float = 0.0
    offline_probability: float = 0.0
    mean_phase_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it.

    Attributes:
        offered: devices that were given the version.
        phases: devices in each phase at the end.
        virtual_s: time that passed on the virtual clock.
    """

    state: RolloutState
    reason: str
    waves: tuple[WaveState, ...]
    offered: int
    phases: dict[str, int]
    virtual_s: float
    rollout: Rollout


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
    rng = random.Random(seed)
    release = Release(target=f"models/model/{_PROFILE}/2.bundle", version=2, counter=2)
    plan = Plan(model="model", version=2, releases={_PROFILE: release}, gate=gate or GateSpec())
    devices = [DeviceRef(f"device-{index}", _PROFILE) for index in range(fleet.devices)]
    rollout = draft(f"simulated-{seed}", plan, waves, devices)
    pending: list[tuple[float, int, ev.Event]] = []
    order = 0
    offered = 0
    now = 0.0
    events: list[ev.Event] = [ev.Started()]
    while True:
        rollout, effects = run_machine(rollout, [*events, ev.Tick()], now)
        events = []
        for effect in effects:
            if not isinstance(effect, ev.Assign):
                continue
            offered += 1
            events.append(ev.Assigned(device=effect.device, generation=1))
            for delay_s, event in _behaviour(effect.device, fleet, rng):
                heapq.heappush(pending, (now + delay_s, order, event))
                order += 1
        if events:
            continue
        if rollout.state not in ACTIVE_STATES - {RolloutState.PAUSED} or now > limit_s:
            break
        now += tick_s
        while pending and pending[0][0] <= now:
            events.append(heapq.heappop(pending)[2])
    phases = Counter(str(mine.phase) for mine in rollout.assignments.values())
    return Simulated(
        state=rollout.state,
        reason=rollout.reason,
        waves=tuple(wave.state for wave in rollout.waves),
        offered=offered,
        phases=dict(phases),
        virtual_s=now,
        rollout=rollout,
    )


def _behaviour(
    device: str, fleet: VirtualFleet, rng: random.Random
) -> list[tuple[float, ev.Event]]:
    """The reports that a device will send, each with its delay after the assignment."""
    if rng.random() < fleet.offline_probability:
        return []
    fails = rng.random() < fleet.failure_probability
    silent = fails and rng.random() < fleet.silent_probability
    last = rng.randrange(1, len(_REPORTED)) if fails else len(_REPORTED)
    reports: list[tuple[float, ev.Event]] = []
    delay_s = 0.0
    for phase in _REPORTED[:last]:
        delay_s += rng.expovariate(1 / fleet.mean_phase_s)
        reports.append((delay_s, _report(device, phase)))
    if fails and not silent:
        delay_s += rng.expovariate(1 / fleet.mean_phase_s)
        reports.append((delay_s, _report(device, rng.choice(_OUTCOMES))))
    return reports


def _report(device: str, phase: AssignmentPhase) -> ev.DeviceReported:
    return ev.DeviceReported(device=device, generation=1, phase=phase)
