"""Sizes that may grow: p99 latency, peak memory.

Logarithms, so that a difference is a ratio; adjusted by what the device showed before
(`statistics.adjust`); compared by ranks within profiles (`statistics.ranks`), where a device with a
thousandfold latency is merely the last one.  What is found is a shift of most devices of a profile;
a few slow ones among many are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

import numpy as np

from fleet.rollouts.gates.tested import POOLED, Evidence, Hypothesis, Strata, Tested
from fleet.rollouts.model import DeviceFigures, GateSpec, Serving
from fleet.rollouts.statistics.adjust import Pair, Values, without_baseline
from fleet.rollouts.statistics.ranks import greater, shift

LATENCY_GATE: Final = "latency"
MEMORY_GATE: Final = "memory"

SIZES: Final[Mapping[str, Callable[[Serving], float | None]]] = {
    LATENCY_GATE: lambda figures: figures.p99_us,
    MEMORY_GATE: lambda figures: figures.rss_mib,
}

_TOLERATED: Final[Mapping[str, Callable[[GateSpec], float]]] = {
    LATENCY_GATE: lambda spec: spec.max_p99_ratio,
    MEMORY_GATE: lambda spec: spec.max_memory_ratio,
}

_WORDS: Final[Mapping[str, tuple[str, float, str]]] = {
    LATENCY_GATE: ("p99", 1e-3, "ms"),
    MEMORY_GATE: ("memory", 1.0, "MiB"),
}


def compare_size(gate: str, strata: Strata, spec: GateSpec) -> Tested:
    """By what factor the size that `gate` names has grown."""
    size, tolerated = SIZES[gate], _TOLERATED[gate](spec)
    pairs = {
        profile: (_logs(treated, size), _logs(control, size))
        for profile, (treated, control) in strata.items()
    }
    pairs = {name: sides for name, sides in pairs.items() if min(len(s[0]) for s in sides)}
    n, m = (sum(len(sides[side][0]) for sides in pairs.values()) for side in (0, 1))
    evidence: Evidence = {
        "devices": n,
        "control_devices": m,
        "tolerated": tolerated if math.isfinite(tolerated) else None,
    }
    if min(n, m) < spec.min_devices:
        return Tested(
            evidence,
            f"{n} devices of the wave and {m} of the control group have figures; "
            f"{spec.min_devices} are needed",
        )
    adjusted = dict(zip(pairs, without_baseline(list(pairs.values())), strict=True))
    chosen = {
        name: [name]
        for name, sides in adjusted.items()
        if min(len(side) for side in sides) >= spec.min_devices
    }
    if len(pairs) > 1 or not chosen:
        chosen[POOLED] = list(pairs)
    return Tested(
        evidence,
        strata={
            name: _hypothesis(
                gate, [pairs[p] for p in profiles], [adjusted[p] for p in profiles], tolerated
            )
            for name, profiles in chosen.items()
        },
    )


def _hypothesis(
    gate: str,
    pairs: Sequence[tuple[Pair, Pair]],
    adjusted: Sequence[tuple[Values, Values]],
    tolerated: float,
) -> Hypothesis:
    ratio = math.exp(min(700.0, shift(adjusted)))
    word, scale, unit = _WORDS[gate]
    sizes = [
        scale * math.exp(median(float(v) for sides in pairs for v in sides[side][0]))
        for side in (0, 1)
    ]
    return Hypothesis(
        p_value=greater(adjusted),
        matters=not ratio <= tolerated,
        says=(
            f"{word} {ratio:.2f} times that of the control group "
            f"({sizes[0]:.2f} {unit} against {sizes[1]:.2f} {unit})"
        ),
        evidence={
            "devices": sum(len(sides[0][0]) for sides in pairs),
            "control_devices": sum(len(sides[1][0]) for sides in pairs),
            f"{word}_{unit.lower()}": sizes[0],
            f"control_{word}_{unit.lower()}": sizes[1],
            "ratio": ratio,
        },
    )


def _logs(devices: Sequence[DeviceFigures], size: Callable[[Serving], float | None]) -> Pair:
    """Logarithms after and before, of devices with a size after; NaN for none before."""
    after: list[float] = []
    before: list[float] = []
    for device in devices:
        value = size(device.now)
        if value is None or not 0 < value < math.inf:
            continue
        earlier = size(device.before) if device.before is not None else None
        after.append(math.log(value))
        before.append(math.log(earlier) if earlier is not None and earlier > 0 else math.nan)
    return np.array(after), np.array(before)
