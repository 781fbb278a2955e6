"""Judgements on a wave, with their evidence.

Three gates, each a pure function of counts:

    failures   failed updates among the responders, by Wilson's score interval
    errors     share of failed requests against the control group, by Newcombe's interval
    latency    p99 latencies against the control group, by a rank test of non-inferiority

"fail" needs confidence that a limit is exceeded.  "insufficient" says that the figures decide
nothing: for `failures` that needs a person; the comparisons let a wave pass then, since the last
wave of a fleet has no control group left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, median

from fleet.rollouts.events import GateDecided, Verdict
from fleet.rollouts.model import Comparison, GateSpec

FAILURES_GATE = "failures"
ERRORS_GATE = "errors"
LATENCY_GATE = "latency"
PERSON_GATE = "person"

_RANK_ALPHA = 0.01
"""Level of the latency test; a false alarm stops a rollout, so it is strict."""


def wilson(failures: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper confidence bounds of a proportion, each at `confidence`.

    With n = 0 nothing is known: (0, 1).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(confidence)
    rate = failures / n
    scale = 1 + z * z / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def failure_gate(
    wave: int,
    *,
    responders: int,
    failures: int,
    under_way: int = 0,
    unreachable: int = 0,
    final: bool,
    spec: GateSpec,
) -> GateDecided | None:
    """Judge the updates of a wave.

    Failures are reported earlier than successes, so before the end the devices still under way
    count as successes: the gate fails early only what would fail in the end anyway.  In the end
    they do not count at all.

    Args:
        responders: devices that ended healthy or failed; unreachable ones are not among them.
        under_way: devices that were offered the version and may still respond.
        final: the wave has been given its time; there must be a verdict.

    Returns:
        None while more responders may come and those so far do not show a failure.
    """
    n = responders if final else responders + under_way
    lower, upper = wilson(failures, n, spec.confidence)
    limit = f"{spec.max_failure_rate:.1%}"
    counted = f"{failures} of {responders} responders failed"
    verdict: Verdict
    if lower > spec.max_failure_rate:
        verdict = "fail"
        reason = f"{counted}: at least {lower:.1%} at {spec.confidence:.0%}, above {limit}"
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
    elif failures <= spec.max_failure_rate * responders:
        verdict = "pass"
        reason = f"{counted}, within {limit}"
    else:  # no comparison held: the threshold is not a number
        verdict = "fail"
        reason = "the threshold cannot be read"
    return GateDecided(
        wave=wave,
        gate=FAILURES_GATE,
        verdict=verdict,
        reason=reason,
        evidence={
            "responders": responders,
            "failures": failures,
            "under_way": under_way,
            "unreachable": unreachable,
            "lower_bound": lower,
            "upper_bound": upper,
            "confidence": spec.confidence,
            "max_failure_rate": (
                spec.max_failure_rate if math.isfinite(spec.max_failure_rate) else None
            ),
            "min_responders": spec.min_responders,
        },
    )


def comparison_gates(wave: int, comparison: Comparison, spec: GateSpec) -> list[GateDecided]:
    """Judge serving figures of the wave against the control group's."""
    return [_errors(wave, comparison, spec), _latency(wave, comparison, spec)]


def _errors(wave: int, comparison: Comparison, spec: GateSpec) -> GateDecided:
    treated, control = comparison.treated, comparison.control
    evidence: dict[str, float | int | str | None] = {
        "requests": treated.requests,
        "errors": treated.errors,
        "control_requests": control.requests,
        "control_errors": control.errors,
        "max_error_increase": spec.max_error_increase,
    }
    if min(treated.requests, control.requests) < spec.min_requests:
        return GateDecided(
            wave=wave,
            gate=ERRORS_GATE,
            verdict="insufficient",
            reason=(
                f"{treated.requests} requests in the wave, {control.requests} in the control "
                f"group; {spec.min_requests} are needed"
            ),
            evidence=evidence,
        )
    increase = newcombe_lower(
        treated.errors, treated.requests, control.errors, control.requests, spec.confidence
    )
    evidence["increase_lower_bound"] = increase
    passed = increase <= spec.max_error_increase
    return GateDecided(
        wave=wave,
        gate=ERRORS_GATE,
        verdict="pass" if passed else "fail",
        reason=(
            f"failed requests rose by at least {increase:.2%} over the control group, "
            f"{'within' if passed else 'above'} {spec.max_error_increase:.2%}"
        ),
        evidence=evidence,
    )


def _latency(wave: int, comparison: Comparison, spec: GateSpec) -> GateDecided:
    treated, control = comparison.treated.p99_us, comparison.control.p99_us
    evidence: dict[str, float | int | str | None] = {
        "windows": len(treated),
        "control_windows": len(control),
        "max_p99_ratio": spec.max_p99_ratio,
    }
    if min(len(treated), len(control)) < spec.min_windows:
        return GateDecided(
            wave=wave,
            gate=LATENCY_GATE,
            verdict="insufficient",
            reason=(
                f"{len(treated)} reports of the wave, {len(control)} of the control group; "
                f"{spec.min_windows} are needed"
            ),
            evidence=evidence,
        )
    p_value = greater([each / spec.max_p99_ratio for each in treated], control)
    evidence["p99_us"] = median(treated)
    evidence["control_p99_us"] = median(control)
    evidence["p_value"] = p_value
    passed = p_value >= _RANK_ALPHA
    return GateDecided(
        wave=wave,
        gate=LATENCY_GATE,
        verdict="pass" if passed else "fail",
        reason=(
            f"median p99 {median(treated) / 1000:.2f} ms against {median(control) / 1000:.2f} ms "
            f"of the control group, {'not shown to be' if passed else ''} above "
            f"{spec.max_p99_ratio:g} times (p = {p_value:.2g})"
        ).replace("  ", " "),
        evidence=evidence,
    )


def newcombe_lower(
    errors: int, requests: int, control_errors: int, control_requests: int, confidence: float
) -> float:
    """Lower confidence bound of the difference of two proportions, first minus second.

    Source: Newcombe 1998, "Interval estimation for the difference between independent
    proportions", method 10.
    """
    rate, control_rate = errors / requests, control_errors / control_requests
    lower, _ = wilson(errors, requests, confidence)
    _, control_upper = wilson(control_errors, control_requests, confidence)
    return rate - control_rate - math.hypot(rate - lower, control_upper - control_rate)


def greater(sample: Sequence[float], reference: Sequence[float]) -> float:
    """One-sided p-value that `sample` tends to be greater than `reference`; ties share ranks.

    Source: Mann and Whitney 1947, normal approximation with tie correction.
    """
    n, m = len(sample), len(reference)
    values = sorted((*sample, *reference))
    ranks: dict[float, float] = {}
    ties = 0.0
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start]:
            end += 1
        ranks[values[start]] = (start + 1 + end) / 2
        ties += (end - start) ** 3 - (end - start)
        start = end
    u = sum(ranks[each] for each in sample) - n * (n + 1) / 2
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:  # all values equal
        return 1.0
    return 1 - NormalDist().cdf((u - n * m / 2 - 0.5) / math.sqrt(variance))
