"""Failed updates of a wave: against a limit, and against the old version's.

The limit: "fail" when Wilson's lower bound of the share of failures among all responders exceeds
`max_failure_rate`.  That stops a version that does not install, and needs no history.

The comparison: the updates that once brought the old version to devices of the same profiles are
the control group.  "fail" when the share of failures rose by more than `max_failure_increase` and a
stratified exact test proves a rise; for each profile by itself, too.  A profile without history is
tested against `max_failure_rate`.  The level is half of what the wave may use up of `false_alarm`.

Failures are reported earlier than successes, so before the end the devices still under way count as
successes: the gate fails early only what would fail in the end anyway, whatever comes.  Looking
often therefore costs no false alarms.  In the end they do not count at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fleet.rollouts.events import GateDecided, Verdict
from fleet.rollouts.gates.tested import POOLED
from fleet.rollouts.model import GateSpec, Outcomes
from fleet.rollouts.statistics.bounds import wilson
from fleet.rollouts.statistics.exact import Counts, binomial_tail, stratified_tail
from fleet.rollouts.statistics.multiple import holm, wave_level

FAILURES_GATE = "failures"

SHARE = 0.5
"""Part of a wave's level that belongs to this gate; the rest is for the serving figures."""


@dataclass(frozen=True, slots=True)
class WaveOutcomes:
    """The updates of one profile in one wave.

    Attributes:
        responders: devices that ended healthy or failed; unreachable ones are not among them.
        under_way: devices that were offered the version and may still respond.
    """

    responders: int = 0
    failures: int = 0
    under_way: int = 0
    unreachable: int = 0


@dataclass(frozen=True, slots=True)
class _Rise:
    """One comparison: the share of failures, what it is held against, and how sure it is."""

    rate: float
    expected: float
    p_value: float
    matters: bool


def failure_gate(
    wave: int,
    *,
    outcomes: Mapping[str, WaveOutcomes],
    history: Mapping[str, Outcomes],
    final: bool,
    spec: GateSpec,
) -> GateDecided | None:
    """Judge the updates of a wave.

    Args:
        outcomes: by profile.
        history: what came of the old version's updates, by profile.
        final: the wave has been given its time; there must be a verdict.

    Returns:
        None while more responders may come and those so far do not show a failure.
    """
    responders = sum(each.responders for each in outcomes.values())
    failures = sum(each.failures for each in outcomes.values())
    unreachable = sum(each.unreachable for each in outcomes.values())
    under_way = sum(each.under_way for each in outcomes.values())
    n = responders if final else responders + under_way
    lower, upper = wilson(failures, n, spec.confidence)
    limit = f"{spec.max_failure_rate:.1%}"
    counted = f"{failures} of {responders} responders failed"
    rises = _rises(outcomes, history, final, spec)
    level = wave_level(spec.false_alarm, wave) * SHARE
    proven = holm({name: rise.p_value for name, rise in rises.items()}, level)
    worse = [name for name, rise in rises.items() if rise.matters and name in proven]
    verdict: Verdict
    if not _readable(spec):
        verdict = "fail"
        reason = "a threshold cannot be read"
    elif lower > spec.max_failure_rate:
        verdict = "fail"
        reason = f"{counted}: at least {lower:.1%} at {spec.confidence:.0%}, above {limit}"
    elif worse:
        verdict = "fail"
        reason = f"{counted}; " + ", ".join(
            f"{name}: {rises[name].rate:.1%} against {rises[name].expected:.1%} "
            f"(p = {rises[name].p_value:.2g})"
            for name in worse
        )
    elif not final:
        return None
    elif responders < spec.min_responders:
        verdict = "insufficient"
        reason = f"{responders} of at least {spec.min_responders} responders"
        reason += f", {unreachable} unreachable" if unreachable else ""
    elif failures > spec.max_failure_rate * responders:
        verdict = "insufficient"
        reason = f"{counted}, above {limit}, but too few to be sure"
    elif spec.require_bound and upper > spec.max_failure_rate:
        verdict = "insufficient"
        reason = f"{counted}: up to {upper:.1%} at {spec.confidence:.0%}, above {limit}"
    else:
        verdict = "pass"
        reason = f"{counted}, within {limit}"
    evidence: dict[str, float | int | str | None] = {
        "responders": responders,
        "failures": failures,
        "under_way": under_way,
        "unreachable": unreachable,
        "lower_bound": lower,
        "upper_bound": upper,
        "confidence": spec.confidence,
        "max_failure_rate": _finite(spec.max_failure_rate),
        "max_failure_increase": _finite(spec.max_failure_increase),
        "min_responders": spec.min_responders,
        "level": _finite(level),
    }
    for name, rise in rises.items():
        evidence[f"{name}: rate"] = rise.rate
        evidence[f"{name}: expected"] = _finite(rise.expected)
        evidence[f"{name}: p_value"] = rise.p_value
    return GateDecided(
        wave=wave, gate=FAILURES_GATE, verdict=verdict, reason=reason[:500], evidence=evidence
    )


def _rises(
    outcomes: Mapping[str, WaveOutcomes],
    history: Mapping[str, Outcomes],
    final: bool,
    spec: GateSpec,
) -> dict[str, _Rise]:
    """Comparisons by profile, and over all that have a history."""
    rises: dict[str, _Rise] = {}
    strata: dict[str, Counts] = {}
    for profile, each in sorted(outcomes.items()):
        n = each.responders if final else each.responders + each.under_way
        known = history.get(profile)
        if not n:
            continue
        if known is not None and known.responders:
            strata[profile] = Counts(n, each.failures, known.responders, known.failures)
            rises[profile] = _rise([strata[profile]], spec)
        else:
            limit = spec.max_failure_rate
            matters = each.failures > limit * n
            p_value = binomial_tail(each.failures, n, limit) if matters else 1.0
            rises[profile] = _Rise(each.failures / n, limit, p_value, matters)
    if len(strata) > 1:
        rises[POOLED] = _rise(list(strata.values()), spec)
    return rises


def _rise(strata: list[Counts], spec: GateSpec) -> _Rise:
    n = sum(each.treated for each in strata)
    rate = sum(each.treated_out for each in strata) / n
    expected = sum(each.treated * each.control_out / each.control for each in strata) / n
    matters = rate - expected > spec.max_failure_increase
    # the test is asked only where its answer matters: a wave is looked at often
    return _Rise(rate, expected, stratified_tail(strata) if matters else 1.0, matters)


def _readable(spec: GateSpec) -> bool:
    return all(
        math.isfinite(each)
        for each in (spec.max_failure_rate, spec.max_failure_increase, spec.false_alarm)
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
