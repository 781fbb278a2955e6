"""The explanation: what it tells of a search, on results made up for it."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.measure import Comparison, Measurement
from optimizer.budget import Budget
from optimizer.errors import UnknownProfile
from optimizer.evaluate import Accuracy
from optimizer.explain import explain, sections
from optimizer.task import Candidate, OptimizeResult


def measurement(ms: float, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "scenario": "single_stream", "verdict": "PASS", "reason": "", "queries": 1000,
        "duration_s": 10.0, "qps": 1000 / ms, "mean_ms": ms, "p50_ms": ms, "p90_ms": ms * 1.1,
        "p95_ms": ms * 1.2, "p99_ms": ms * 1.3, "percentile": 0.99, "upper_bound_ms": ms * 1.4,
        "target_latency_ms": 10.0, "target_qps": None, "over_limit": 0, "quick": False, "seed": 0,
        "peak_rss_mib": 50.0, "canary_ms": 0.1, "canary_ratio": 1.0, "waited_share": 0.0,
        "load_per_core": 0.1, "runs": 1, "provenance": {"runtime": "onnxruntime", "version": "1"},
    }  # fmt: skip
    return Measurement(**(values | changes))


def candidate(name: str, ms: float, quality: float, **changes: Any) -> Candidate:
    member, _, recipe = name.partition("/")
    timed = measurement(ms)
    values: dict[str, Any] = {
        "profile": "box", "name": name, "member": member, "recipe": recipe,
        "runtime": "onnxruntime", "precision": "fp32", "verdict": "PASS", "measurement": timed,
        "latency_ms": timed.p99_ms, "artifact_kib": 100.0, "measured_on": "this machine",
        "accuracy": Accuracy(
            accuracy=quality, macro_f1=quality, balanced_accuracy=quality,
            recall={"cat": quality, "dog": quality}, n=500,
        ),
    }  # fmt: skip
    return Candidate(**(values | changes))


FASTER = Comparison(
    speedup=3.1, low=3.0, high=3.2, pairs=240, baseline_p50_ms=6.2, candidate_p50_ms=2.0,
    provenance={},
)  # fmt: skip


def result(*candidates: Candidate, **changes: Any) -> OptimizeResult:
    chosen = {c.profile: c.name for c in candidates if c.selected}
    values: dict[str, Any] = {
        "model": "pets", "version": 1, "primary": "macro_f1", "quick": False, "seed": 0,
        "budgets": {"box": Budget(latency_ms=10, max_accuracy_drop_points=1, artifact_kib=400)},
        "baselines": {"large": 0.96}, "candidates": candidates, "selected": chosen, "unmet": {},
        "environment": {}, "points": 6, "measured": 3, "duration_s": 75.0,
    }  # fmt: skip
    return OptimizeResult(**(values | changes))


WINNER = candidate("large/int8", 2, 0.955, selected=True, comparison=FASTER)
SLOWER = candidate("large/fp32", 6, 0.96)
WRONG = candidate(
    "small/int8", 1, 0.93, verdict="FAIL", reason="loss of macro_f1 3 points > 1 points"
)
BEATEN = candidate(
    "small/fp32", 4, 0.94, fidelity="probe", verdict="INCONCLUSIVE", latency_ms=None,
    reason="not measured in full: large/int8 promises more",
)  # fmt: skip
BROKEN = candidate(
    "small/bf16", 1, 0.9, verdict="INVALID", measurement=None, latency_ms=None, accuracy=None,
    reason="bf16: no such kernels",
)  # fmt: skip


def told(given: OptimizeResult, title: str) -> str:
    return "\n".join(
        line for each in sections(given, "box") if each.title == title for line in each.lines
    )


def test_the_winner_is_named_with_its_proof_against_fp32() -> None:
    text = told(result(WINNER, SLOWER), "Chosen")
    assert "large/int8: p99 2.6 ms" in text
    assert "3.10× as fast as fp32" in text
    assert "between 3.00 and 3.20" in text
    assert "240 pairs" in text


def test_each_bound_is_told_with_its_margin() -> None:
    text = told(result(WINNER, SLOWER), "Budget")
    assert "✓ p99 latency 2.6 ms ≤ 10 ms, 74% to spare; with 99 % confidence below 2.8 ms" in text
    assert "✓ bundle 100 KiB ≤ 400 KiB, 75% to spare" in text
    assert "✓ loss of macro-F1 0.5 points ≤ 1 points, 50% to spare" in text


def test_a_latency_that_statistics_do_not_prove_is_not_ticked() -> None:
    unsure = measurement(2, verdict="INCONCLUSIVE", reason="too few requests")
    text = told(result(WINNER.model_copy(update={"measurement": unsure})), "Budget")
    assert "✓ p99 latency" not in text
    assert "? p99 latency 2.6 ms of 10 ms: too few requests" in text


def test_the_runner_up_is_told_with_what_decided() -> None:
    text = told(result(WINNER, SLOWER, WRONG), "Runner-up")
    assert text.startswith("large/fp32")
    assert "speed, median 2 ms against 6 ms" in text


def test_where_accuracy_is_preferred_chance_is_named_as_what_decided() -> None:
    text = told(result(WINNER, SLOWER, budgets={"box": Budget(prefer="accuracy")}), "Runner-up")
    assert text.startswith("large/fp32")
    assert "chance" in text


def test_what_was_faster_is_told_with_why_it_was_refused() -> None:
    gave_way = candidate("large/fp16", 1.5, 0.96, notes=("0.99× as fast: so it gave way",))
    text = told(result(WINNER, SLOWER, WRONG, gave_way), "Faster, but refused")
    assert "small/int8, median 1 ms (in full): loss of macro_f1 3 points > 1 points" in text
    assert "large/fp16" in text
    assert "gave way" in text
    assert "large/fp32" not in text


def test_what_went_no_further_is_counted_by_why() -> None:
    text = told(result(WINNER, SLOWER, WRONG, BEATEN, BROKEN), "The search")
    assert "6 different points, 3 of them measured in full (50%), in 1 min 15 s" in text
    assert "went no further than a few runs: 1, of which 1: large/int8 promises more" in text
    assert "could not be made or run: small/bf16: bf16: no such kernels" in text
    assert "measured in full: 3: 1 FAIL, 2 PASS" in text


def test_the_other_preference_names_what_it_would_take() -> None:
    assert "large/fp32" in told(result(WINNER, SLOWER), "With another preference")
    alone = told(result(WINNER), "With another preference")
    assert "would take the same" in alone


def test_predicted_figures_are_told_apart() -> None:
    foretold = WINNER.model_copy(update={"predicted": True, "measured_on": ""})
    text = told(result(foretold, SLOWER), "Where the figures come from")
    assert "predicted, never measured on this profile: large/int8" in text
    assert "measured on this machine: 1 variant" in text


def test_without_a_winner_the_nearest_miss_is_held_against_the_budget() -> None:
    missed = "no variant meets the budget of profile 'box'; nearest is small/int8: loss"
    text = explain(result(WRONG, BROKEN, unmet={"box": missed}))
    assert missed in text.replace("\n    ", " ")
    assert "of small/int8:" in text
    assert "✗ loss of macro-F1 3 points > 1 points, 200% too much" in text


def test_an_unknown_profile_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownProfile, match="no profile 'bx'; did you mean 'box'"):
        explain(result(WINNER), "bx")


def test_agreement_is_not_called_accuracy() -> None:
    text = explain(result(WINNER, agreement=True, primary="accuracy"))
    assert "agreement with fp32 95.50 %" in text
