"""Shares of requests, device by device: how many devices stand out?

A device stands out when its share of, say, failed requests surely (95 %, and by two requests at
least) exceeds what it had before and what the median device of the control group has, by more than
is tolerated.  How many devices of the wave stand out is then held against the control group by an
exact test.  So an error that is rare but everywhere is found, one that breaks every tenth device is
found, and a single device that fails each of its million requests is one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet.rollouts.gates.tested import POOLED, Evidence, Hypothesis, Strata, Tested
from fleet.rollouts.model import DeviceFigures, GateSpec, Serving
from fleet.rollouts.statistics.bounds import wilson_lower
from fleet.rollouts.statistics.exact import Counts, stratified_tail

Values = NDArray[np.float64]

ERRORS_GATE: Final = "errors"
REJECTS_GATE: Final = "rejects"
CORRECTIONS_GATE: Final = "corrections"

SHARES: Final[Mapping[str, Callable[[Serving], int]]] = {
    ERRORS_GATE: lambda figures: figures.errors,
    REJECTS_GATE: lambda figures: figures.rejects,
    CORRECTIONS_GATE: lambda figures: figures.corrections,
}

_TOLERATED: Final[Mapping[str, Callable[[GateSpec], float]]] = {
    ERRORS_GATE: lambda spec: spec.max_error_increase,
    REJECTS_GATE: lambda spec: spec.max_reject_increase,
    CORRECTIONS_GATE: lambda spec: spec.max_correction_increase,
}

_SURE: Final = 0.95
_LEAST: Final = 2
"""Fewer requests make no device stand out: Wilson's bound is too low a bar for a single one."""


def compare_share(gate: str, strata: Strata, spec: GateSpec) -> Tested:
    """How many devices stand out by the share that `gate` names."""
    count, tolerated = SHARES[gate], _TOLERATED[gate](spec)
    kept = {
        profile: ([d for d in a if d.now.requests], [d for d in b if d.now.requests])
        for profile, (a, b) in strata.items()
    }
    sides = [[device.now for pair in kept.values() for device in pair[side]] for side in (0, 1)]
    evidence: Evidence = {"tolerated": tolerated if np.isfinite(tolerated) else None}
    for label, side in zip(("", "control_"), sides, strict=True):
        evidence |= {
            f"{label}devices": len(side),
            f"{label}requests": sum(each.requests for each in side),
            f"{label}{gate}": sum(count(each) for each in side),
        }
    lacks = _lacks(sides[0], sides[1], spec)
    if lacks:
        return Tested(evidence, lacks)
    counts: dict[str, Counts] = {}
    for profile, (treated, control) in kept.items():
        if treated and control:
            usual = float(np.median(_shares([each.now for each in control], count)))
            counts[profile] = Counts(
                len(treated),
                _standing_out(treated, count, usual, tolerated),
                len(control),
                _standing_out(control, count, usual, tolerated),
            )
    return Tested(evidence, strata=_hypotheses(counts, spec, f"have more {gate}"))


def compare_drift(strata: Strata, spec: GateSpec) -> Tested:
    """How many devices see or answer something unlike their own version's reference."""
    counts: dict[str, Counts] = {}
    for profile, sides in strata.items():
        treated, control = (
            [each.drift_p for each in side if each.drift_p is not None] for side in sides
        )
        if treated and control:
            counts[profile] = Counts(
                len(treated),
                sum(p <= spec.drift_level for p in treated),
                len(control),
                sum(p <= spec.drift_level for p in control),
            )
    n = sum(each.treated for each in counts.values())
    m = sum(each.control for each in counts.values())
    evidence: Evidence = {"devices": n, "control_devices": m}
    if min(n, m) < spec.min_devices:
        return Tested(
            evidence,
            f"{n} devices of the wave and {m} of the control group were checked for drift; "
            f"{spec.min_devices} are needed",
        )
    return Tested(evidence, strata=_hypotheses(counts, spec, "drift"))


def _hypotheses(counts: Mapping[str, Counts], spec: GateSpec, what: str) -> dict[str, Hypothesis]:
    tests = {
        profile: [each]
        for profile, each in counts.items()
        if min(each.treated, each.control) >= spec.min_devices
    }
    if len(counts) > 1 or not tests:
        tests[POOLED] = list(counts.values())
    return {name: _hypothesis(each, what) for name, each in tests.items()}


def _hypothesis(strata: Sequence[Counts], what: str) -> Hypothesis:
    n, out = sum(s.treated for s in strata), sum(s.treated_out for s in strata)
    m, control_out = sum(s.control for s in strata), sum(s.control_out for s in strata)
    return Hypothesis(
        p_value=stratified_tail(strata),
        matters=out > 0,
        says=f"{out} of {n} devices {what}, {control_out} of {m} in the control group",
        evidence={
            "devices": n,
            "stand_out": out,
            "control_devices": m,
            "control_stand_out": control_out,
        },
    )


def _standing_out(
    devices: Sequence[DeviceFigures],
    count: Callable[[Serving], int],
    usual: float,
    tolerated: float,
) -> int:
    requests = np.array([device.now.requests for device in devices], np.float64)
    counts = np.minimum(np.array([count(device.now) for device in devices], np.float64), requests)
    before = _shares([device.before or Serving() for device in devices], count)
    limit = np.maximum(before, usual) + tolerated
    surely = wilson_lower(counts, requests, _SURE) > limit
    return int(np.count_nonzero(surely & (counts >= _LEAST)))


def _shares(figures: Sequence[Serving], count: Callable[[Serving], int]) -> Values:
    requests = np.array([each.requests for each in figures], np.float64)
    counts = np.array([count(each) for each in figures], np.float64)
    return np.minimum(1.0, counts / np.maximum(requests, 1.0))


def _lacks(treated: Sequence[Serving], control: Sequence[Serving], spec: GateSpec) -> str:
    n, m = len(treated), len(control)
    if min(n, m) < spec.min_devices:
        return (
            f"{n} devices of the wave and {m} of the control group have figures; "
            f"{spec.min_devices} are needed"
        )
    requests = [sum(each.requests for each in side) for side in (treated, control)]
    if min(requests) < spec.min_requests:
        return (
            f"{requests[0]} requests in the wave, {requests[1]} in the control group; "
            f"{spec.min_requests} are needed"
        )
    return ""
