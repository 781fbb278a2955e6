"""How often are rollouts of good and bad versions stopped?  Many of them on the virtual clock.

Everything that decides is real: the plan's waves, the machine, the gates with their default
thresholds.  `python -m bench.rollouts` prints what comes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fleet.rollouts.model import GateSpec, RolloutState, WavePlan, WaveState
from fleet.rollouts.statistics.bounds import wilson
from fleet.simulate.virtual import Simulated, VirtualFleet, run
from fleet.simulate.virtual_devices import Habits, Version

PROFILES = {"raspberry-pi-5": 0.6, "jetson-orin-nano": 0.3, "x86-64-v3": 0.1}
SLOWNESS = {"raspberry-pi-5": 1.0, "jetson-orin-nano": 0.4, "x86-64-v3": 0.25}

FLEET = VirtualFleet(
    devices=3000,
    profiles=PROFILES,
    failure_probability=0.01,
    silent_probability=0.3,
    late_probability=0.5,
    churn_probability=0.1,
    history=1000,
    habits=Habits(slowness=SLOWNESS),
    brief=True,
)
"""The fleet that is rolled out to.  One update in a hundred fails, whatever the version."""

WAVES = (
    WavePlan(count=600, soak_s=3600),
    WavePlan(count=900, soak_s=3600),
    WavePlan(percent=100, soak_s=3600),
)

VERSIONS = {
    "equal": Version(),
    "failures +5 points": Version(failure_increase=0.05),
    "p99 +30 %": Version(p99_ratio=1.3),
    "errors +3 points on one profile": Version(error_increase=0.03, only="x86-64-v3"),
    "memory +50 % at the end of the soak": Version(memory_ratio=1.5),
    "rejects +6 points": Version(reject_increase=0.06),
    "corrections +6 points": Version(correction_increase=0.06),
    "drift on every fifth device": Version(drift_increase=0.2),
}
EQUAL = "equal"
OFFLINE = (0.0, 0.2)
"""Shares of devices that are away while they are offered the version."""

TICK_S = 600.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of many rollouts of one version.

    Attributes:
        halted_first: halted in the first wave, which holds every profile.
        stopped: halted in any wave, or left to a person.
        upper_stopped, lower_halted_first: 95 % bounds of their shares.
        reasons: of the first rollouts that were stopped.
    """

    version: str
    offline: float
    rollouts: int
    halted_first: int
    stopped: int
    completed: int
    reasons: tuple[str, ...] = ()

    @property
    def lower_halted_first(self) -> float:
        return wilson(self.halted_first, self.rollouts, 0.95)[0]

    @property
    def upper_stopped(self) -> float:
        return wilson(self.stopped, self.rollouts, 0.95)[1]


def measure(
    version: str,
    rollouts: int,
    *,
    offline: float = 0.0,
    fleet: VirtualFleet = FLEET,
    waves: Sequence[WavePlan] = WAVES,
    gate: GateSpec | None = None,
    seed: int = 0,
) -> Result:
    """Roll one of `VERSIONS` out many times, to another fleet each time."""
    changed = replace(fleet, version=VERSIONS[version], offline_probability=offline)
    halted_first = stopped = completed = 0
    reasons: list[str] = []
    for each in _rollouts(changed, waves, gate, range(seed, seed + rollouts)):
        halted = each.state is RolloutState.HALTED
        halted_first += halted and each.waves[0] is WaveState.FAILED
        stopped += halted or each.state is RolloutState.PAUSED
        completed += each.state is RolloutState.COMPLETED
        if each.state is not RolloutState.COMPLETED and len(reasons) < 5:
            reasons.append(each.reason)
    return Result(
        version, offline, rollouts, halted_first, stopped, completed, reasons=tuple(reasons)
    )


def _rollouts(
    fleet: VirtualFleet, waves: Sequence[WavePlan], gate: GateSpec | None, seeds: Iterable[int]
) -> Iterator[Simulated]:
    for seed in seeds:
        yield run(fleet, waves, gate=gate, seed=seed, tick_s=TICK_S)
