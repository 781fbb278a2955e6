"""Serving figures of a wave against devices that still run the old version.

    errors, rejects, corrections   shares of a device's requests   `shares`
    drift                          a device's window is unlike its version's reference
    latency, memory                p99, peak resident memory       `sizes`

The device is the unit: whatever a broken one does, it counts once.  Devices are compared with
devices of their own profile only; each profile is judged by itself, so that trouble on one of them
is not thinned by the others, and all together.  All of these hypotheses share the level that the
wave may use up of `false_alarm` (less the part of `failures`) by Holm's procedure.  They are asked
once, at the end of the soak.

"insufficient" says that the figures decide nothing; a wave passes then, since the last wave of a
fleet may have no control group left, unless `require_comparison` is set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from fleet.rollouts.events import GateDecided, Verdict
from fleet.rollouts.gates.failures import SHARE
from fleet.rollouts.gates.shares import SHARES, compare_drift, compare_share
from fleet.rollouts.gates.sizes import SIZES, compare_size
from fleet.rollouts.gates.tested import Strata, Tested
from fleet.rollouts.model import Comparison, DeviceFigures, GateSpec
from fleet.rollouts.statistics.multiple import holm, wave_level

DRIFT_GATE = "drift"


def comparison_gates(wave: int, comparison: Comparison, spec: GateSpec) -> list[GateDecided]:
    """Judge the serving figures of a wave; one decision for each of them."""
    strata = _strata(comparison)
    tests = {
        **{name: compare_share(name, strata, spec) for name in SHARES},
        **{name: compare_size(name, strata, spec) for name in SIZES},
        DRIFT_GATE: compare_drift(strata, spec),
    }
    level = wave_level(spec.false_alarm, wave) * (1 - SHARE)
    proven = holm(
        {
            (name, stratum): each.p_value
            for name, tested in tests.items()
            for stratum, each in tested.strata.items()
        },
        level,
    )
    return [
        _decision(wave, name, tested, {s for gate, s in proven if gate == name}, level, spec)
        for name, tested in tests.items()
    ]


def _decision(
    wave: int, gate: str, tested: Tested, proven: set[str], level: float, spec: GateSpec
) -> GateDecided:
    worse = [name for name, each in tested.strata.items() if each.matters and name in proven]
    verdict: Verdict
    if not _readable(spec):
        verdict, reason = "fail", "a threshold cannot be read"
    elif tested.lacks:
        verdict, reason = "insufficient", tested.lacks
    elif worse:
        verdict = "fail"
        reason = ", ".join(
            f"{name}: {tested.strata[name].says} (p = {tested.strata[name].p_value:.2g})"
            for name in worse
        )
    else:
        verdict = "pass"
        least = min(tested.strata.values(), key=lambda each: each.p_value)
        reason = f"{least.says}, {'not proven' if least.matters else 'within what is tolerated'}"
        reason += f" (p = {least.p_value:.2g})"
    evidence: dict[str, float | int | str | None] = {
        **tested.evidence,
        "level": level if math.isfinite(level) else None,
    }
    for name, each in tested.strata.items():
        evidence |= {f"{name}: {key}": value for key, value in each.evidence.items()}
        evidence[f"{name}: p_value"] = each.p_value
    return GateDecided(
        wave=wave, gate=gate, verdict=verdict, reason=reason[:500], evidence=evidence
    )


def _strata(comparison: Comparison) -> Strata:
    """Both sides by profile, profiles that both of them have."""
    treated = _by_profile(comparison.treated.devices)
    control = _by_profile(comparison.control.devices)
    return {
        profile: (treated[profile], control[profile])
        for profile in sorted(treated)
        if profile in control
    }


def _by_profile(devices: Iterable[DeviceFigures]) -> dict[str, list[DeviceFigures]]:
    found: dict[str, list[DeviceFigures]] = defaultdict(list)
    for device in devices:
        found[device.profile].append(device)
    return dict(found)


def _readable(spec: GateSpec) -> bool:
    return all(
        math.isfinite(each)
        for each in (
            spec.false_alarm,
            spec.max_error_increase,
            spec.max_reject_increase,
            spec.max_correction_increase,
            spec.max_p99_ratio,
            spec.max_memory_ratio,
            spec.drift_level,
        )
    )
