"""What a plan can find: the smallest harm that each wave would stop, most of the time.

For each wave, as if it were the first that meets the bad version, with the level that it has
(`statistics.multiple`) and devices as they usually are (`Noise`).  The figures are approximations
made beforehand; `fleet.simulate.montecarlo` measures the same on the real gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from fleet.rollouts.gates import CORRECTIONS_GATE, DRIFT_GATE, ERRORS_GATE, REJECTS_GATE
from fleet.rollouts.gates.failures import SHARE
from fleet.rollouts.gates.sizes import SIZES
from fleet.rollouts.model import GateSpec
from fleet.rollouts.statistics.exact import Counts, binomial_tail, stratified_tail
from fleet.rollouts.statistics.multiple import wave_level

POWER = 0.95
"""Probability with which a harm of the size given is found."""

_GATES = len(SIZES) + len((ERRORS_GATE, REJECTS_GATE, CORRECTIONS_GATE, DRIFT_GATE))
_RANK_EFFICIENCY = 3 / math.pi
"""Of the rank test against the mean's, for normal values (Hodges and Lehmann 1956)."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What devices are assumed to be like.

    Attributes:
        failure_rate: share of updates to the old version that failed.
        history: updates to the old version whose outcome is known.
        size_spread: standard deviation of the logarithm of a device's p99 or memory around what it
            showed before.
        standing_out: share of devices on the old version that stand out by errors.
        silent: share of devices that respond to no update.
    """

    failure_rate: float = 0.01
    history: int = 1000
    size_spread: float = 0.15
    standing_out: float = 0.01
    silent: float = 0.05


@dataclass(frozen=True, slots=True)
class Detectable:
    """What one wave finds with probability `POWER`; None: nothing, for want of devices.

    Attributes:
        devices: of the wave.
        control: devices left as its control group.
        failure_increase: rise of the share of failed updates, in all profiles.
        p99_ratio: factor of p99 latencies, in all profiles.
        standing_out: share of devices with more errors, in all profiles.
        profile_standing_out: the same in the smallest profile alone.
    """

    wave: int
    devices: int
    control: int
    failure_increase: float | None
    p99_ratio: float | None
    standing_out: float | None
    profile_standing_out: float | None


def detectable(
    waves: Sequence[Mapping[str, int]],
    spec: GateSpec,
    *,
    outside: Mapping[str, int] | None = None,
    noise: Noise = Noise(),
) -> list[Detectable]:
    """What each wave of a plan finds.

    Args:
        waves: devices of each wave, by profile.
        outside: devices on the old version that take no part, by profile.
    """
    found: list[Detectable] = []
    for index, wave in enumerate(waves):
        control = dict(outside or {})
        for later in waves[index + 1 :]:
            for profile, count in later.items():
                control[profile] = control.get(profile, 0) + count
        found.append(_wave(index, wave, control, spec, noise))
    return found


def _wave(
    index: int, wave: Mapping[str, int], control: Mapping[str, int], spec: GateSpec, noise: Noise
) -> Detectable:
    answering = {name: round(count * (1 - noise.silent)) for name, count in wave.items()}
    n = sum(answering.values())
    level = wave_level(spec.false_alarm, index)
    tests = len(wave) + (len(wave) > 1)
    shared = {
        name: (count, round(control.get(name, 0) * (1 - noise.silent)))
        for name, count in answering.items()
        if count and control.get(name, 0)
    }
    pairs = sum(a for a, _ in shared.values()), sum(b for _, b in shared.values())
    figures_level = level * (1 - SHARE) / (tests * _GATES)
    smallest = min(shared.values(), default=(0, 0))
    return Detectable(
        wave=index,
        devices=sum(wave.values()),
        control=sum(control.get(name, 0) for name in wave),
        failure_increase=_failures(n, level * SHARE / tests, spec, noise),
        p99_ratio=_ratio(pairs, figures_level, spec, noise),
        standing_out=_standing_out(pairs, figures_level, spec, noise),
        profile_standing_out=_standing_out(smallest, figures_level, spec, noise),
    )


def _failures(n: int, level: float, spec: GateSpec, noise: Noise) -> float | None:
    """Rise of the share of failures: proven against history, or above the limit alone."""
    if n < spec.min_responders or not n:
        return None
    past = noise.history, round(noise.history * noise.failure_rate)
    relevant = math.floor((noise.failure_rate + spec.max_failure_increase) * n) + 1
    if noise.history:
        needed = _needed(n, past, level, relevant)
    else:
        limit = spec.max_failure_rate
        needed = next(
            (x for x in range(n + 1) if x > limit * n and binomial_tail(x, n, limit) <= level),
            None,
        )
    share = _share(n, needed)
    return None if share is None else max(0.0, share - noise.failure_rate)


def _standing_out(
    sides: tuple[int, int], level: float, spec: GateSpec, noise: Noise
) -> float | None:
    n, m = sides
    if min(n, m) < spec.min_devices:
        return None
    return _share(n, _needed(n, (m, round(m * noise.standing_out)), level, 1))


def _ratio(sides: tuple[int, int], level: float, spec: GateSpec, noise: Noise) -> float | None:
    n, m = sides
    if min(n, m) < spec.min_devices:
        return None
    normal = NormalDist()
    error = noise.size_spread * math.sqrt((1 / n + 1 / m) / _RANK_EFFICIENCY)
    proof = normal.inv_cdf(1 - level)
    if proof >= math.sqrt(3 * n * m / (n + m + 1)):  # no order of the devices is proof enough
        return None
    power = normal.inv_cdf(POWER)
    return math.exp(max(proof * error, math.log(spec.max_p99_ratio)) + power * error)


def _needed(n: int, control: tuple[int, int], level: float, least: int) -> int | None:
    """The smallest count of `n` that proves a rise over the control group's."""
    m, out = control
    low, high = max(least, 1), n + 1
    while low < high:
        middle = (low + high) // 2
        if stratified_tail([Counts(n, middle, m, out)]) <= level:
            high = middle
        else:
            low = middle + 1
    return low if low <= n else None


def _share(n: int, needed: int | None) -> float | None:
    """The smallest share of which `n` units show `needed` or more with probability `POWER`."""
    if needed is None:
        return None
    low, high = needed / n / 2, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if binomial_tail(needed, n, middle) >= POWER:
            high = middle
        else:
            low = middle
    return high
