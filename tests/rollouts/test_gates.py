from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from fleet.rollouts.gates import (
    comparison_gates,
    failure_gate,
    greater,
    newcombe_lower,
    wilson,
)
from fleet.rollouts.model import Comparison, GateSpec, WaveMetrics


def test_wilson_bounds_agree_with_published_values() -> None:
    # Newcombe 1998, table I: 81/263 at 95 % two-sided is (0.2553, 0.3662); 0/20 is (0, 0.1611).
    assert wilson(81, 263, 0.975) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20, 0.975) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_newcombe_agrees_with_the_published_value() -> None:
    # Newcombe 1998, method 10: 56/70 - 48/80 at 95 % two-sided is (0.0524, 0.3339).
    assert newcombe_lower(56, 70, 48, 80, 0.975) == pytest.approx(0.0524, abs=1e-4)


@pytest.mark.parametrize(
    ("responders", "failures", "min_responders", "verdict"),
    [
        (10, 0, 1, "pass"),
        (10, 1, 1, "pass"),
        (10, 2, 1, "insufficient"),  # above 10 %, not surely
        (10, 5, 1, "fail"),
        (0, 0, 1, "insufficient"),
        (4, 0, 5, "insufficient"),
        (4, 4, 5, "fail"),  # certainty of failure needs no minimum
        (1, 1, 1, "fail"),
    ],
)
def test_final_verdict(responders: int, failures: int, min_responders: int, verdict: str) -> None:
    spec = GateSpec(min_responders=min_responders)
    decision = failure_gate(0, responders=responders, failures=failures, final=True, spec=spec)
    assert decision is not None
    assert decision.verdict == verdict
    assert decision.evidence["responders"] == responders


def test_required_bound_needs_enough_responders() -> None:
    spec = GateSpec(require_bound=True)
    few = failure_gate(0, responders=20, failures=0, final=True, spec=spec)
    many = failure_gate(0, responders=25, failures=0, final=True, spec=spec)
    assert few is not None
    assert few.verdict == "insufficient"
    assert many is not None
    assert many.verdict == "pass"


def test_early_failures_count_against_all_that_may_still_succeed() -> None:
    spec = GateSpec()
    assert failure_gate(0, responders=1, failures=1, under_way=99, final=False, spec=spec) is None
    bad = failure_gate(0, responders=20, failures=20, under_way=80, final=False, spec=spec)
    assert bad is not None
    assert bad.verdict == "fail"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1.0, "ten"])
def test_threshold_that_makes_no_sense_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        GateSpec.model_validate({"max_failure_rate": value})


def test_unreadable_threshold_fails_the_wave() -> None:
    broken = GateSpec().model_copy(update={"max_failure_rate": float("nan")})
    decision = failure_gate(0, responders=10, failures=0, final=True, spec=broken)
    assert decision is not None
    assert decision.verdict == "fail"


def _p99(rng: random.Random, median_us: float, n: int) -> tuple[float, ...]:
    return tuple(median_us * rng.lognormvariate(0, 0.3) for _ in range(n))


def test_latency_gate_fails_three_times_slower_and_passes_equal() -> None:
    rng = random.Random(1)
    control = WaveMetrics(p99_us=_p99(rng, 1000, 20))
    slow = Comparison(treated=WaveMetrics(p99_us=_p99(rng, 3000, 20)), control=control)
    equal = Comparison(treated=WaveMetrics(p99_us=_p99(rng, 1000, 20)), control=control)
    assert comparison_gates(0, slow, GateSpec())[1].verdict == "fail"
    assert comparison_gates(0, equal, GateSpec())[1].verdict == "pass"


def test_thin_figures_decide_nothing() -> None:
    few = Comparison(
        treated=WaveMetrics(requests=10, errors=10, p99_us=(9e9,)),
        control=WaveMetrics(requests=10_000, p99_us=(1.0,) * 20),
    )
    assert [gate.verdict for gate in comparison_gates(0, few, GateSpec())] == ["insufficient"] * 2


def test_rank_test_keeps_its_level_under_the_null() -> None:
    rng = random.Random(2)
    alarms = sum(
        greater([rng.random() for _ in range(10)], [rng.random() for _ in range(10)]) < 0.05
        for _ in range(1000)
    )
    assert 25 <= alarms <= 65
    assert greater([1.0] * 5, [1.0] * 5) == 1.0
