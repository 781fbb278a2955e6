from __future__ import annotations

import pytest
from pydantic import ValidationError

from fleet.rollouts.events import GateDecided
from fleet.rollouts.gates import WaveOutcomes, failure_gate
from fleet.rollouts.model import GateSpec, Outcomes


def judge(
    responders: int,
    failures: int,
    *,
    under_way: int = 0,
    final: bool = True,
    spec: GateSpec | None = None,
    history: dict[str, Outcomes] | None = None,
    wave: int = 0,
) -> GateDecided | None:
    mine = WaveOutcomes(responders=responders, failures=failures, under_way=under_way)
    return failure_gate(
        wave, outcomes={"pi": mine}, history=history or {}, final=final, spec=spec or GateSpec()
    )


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
    decision = judge(responders, failures, spec=GateSpec(min_responders=min_responders))
    assert decision is not None
    assert decision.verdict == verdict
    assert decision.evidence["responders"] == responders


def test_required_bound_needs_enough_responders() -> None:
    spec = GateSpec(require_bound=True)
    few, many = judge(20, 0, spec=spec), judge(25, 0, spec=spec)
    assert few is not None
    assert few.verdict == "insufficient"
    assert many is not None
    assert many.verdict == "pass"


def test_early_failures_count_against_all_that_may_still_succeed() -> None:
    assert judge(1, 1, under_way=99, final=False) is None
    bad = judge(20, 20, under_way=80, final=False)
    assert bad is not None
    assert bad.verdict == "fail"


def test_five_points_more_failures_than_the_old_version_fail_far_below_the_limit() -> None:
    history = {"pi": Outcomes(responders=2000, failures=20)}
    worse = judge(300, 18, history=history)
    assert worse is not None
    assert worse.verdict == "fail"
    assert "pi: 6.0% against 1.0%" in worse.reason
    assert judge(300, 18, history=history, final=False, under_way=1) is not None
    alike = judge(300, 5, history=history)
    assert alike is not None
    assert alike.verdict == "pass"


def test_proven_rise_that_does_not_matter_passes() -> None:
    history = {"pi": Outcomes(responders=100_000, failures=1000)}
    decision = judge(50_000, 900, history=history)  # 1.8 % against 1.0 %
    assert decision is not None
    assert decision.verdict == "pass"


@pytest.mark.parametrize("known", [True, False])
def test_one_profile_that_fails_is_not_thinned_by_the_others(known: bool) -> None:
    outcomes = {
        "pi": WaveOutcomes(responders=1000, failures=10),
        "gpu": WaveOutcomes(responders=40, failures=20),
    }
    past = Outcomes(responders=1000, failures=10)
    decision = failure_gate(
        0,
        outcomes=outcomes,
        history={"pi": past, "gpu": past} if known else {},
        final=True,
        spec=GateSpec(),
    )
    assert decision is not None
    assert decision.verdict == "fail"
    assert "gpu: 50.0%" in decision.reason


@pytest.mark.parametrize(
    "name", ["max_failure_rate", "max_failure_increase", "false_alarm", "max_p99_ratio"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1e9, "ten", None])
def test_threshold_that_makes_no_sense_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        GateSpec.model_validate({name: value})


@pytest.mark.parametrize("name", ["max_failure_rate", "max_failure_increase"])
def test_unreadable_threshold_fails_the_wave(name: str) -> None:
    broken = GateSpec().model_copy(update={name: float("nan")})
    decision = judge(10, 0, spec=broken)
    assert decision is not None
    assert decision.verdict == "fail"


def test_specification_that_an_earlier_version_stored_is_read() -> None:
    assert GateSpec.model_validate({"min_windows": 8, "max_p99_ratio": 2.0}).max_p99_ratio == 2.0
