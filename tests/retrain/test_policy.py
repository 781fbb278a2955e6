from __future__ import annotations

from dataclasses import replace

import pytest

from cloud.retrain import RetrainFacts, RetrainPolicy, Share, decide

POLICY = RetrainPolicy(min_labels=50, max_accuracy_drop_points=5, cooldown_s=600)
NOW = 10_000.0
GOOD = RetrainFacts(
    model="digits",
    version=1,
    baseline_accuracy=0.97,
    audited=Share(right=97, n=100),
    reported=Share(right=120, n=120),
    drift="ok",
    new_labels=100,
)
HARMED = replace(GOOD, reported=Share(right=60, n=120), drift="drift")


def test_nothing_is_due_while_all_is_well() -> None:
    assert decide(GOOD, POLICY, NOW).action == "none"


def test_confirmed_harm_with_enough_labels_is_due() -> None:
    decision = decide(HARMED, POLICY, NOW)
    assert decision.action == "retrain"
    assert "reported accuracy in the field is at most 0.5" in decision.reason


def test_harm_that_auditors_find_counts_too() -> None:
    facts = replace(GOOD, audited=Share(right=40, n=60))
    decision = decide(facts, POLICY, NOW)
    assert decision.action == "retrain"
    assert decision.reason.startswith("audited")


def test_harm_needs_no_drift() -> None:
    assert decide(replace(HARMED, drift="ok"), POLICY, NOW).action == "retrain"


def test_drift_alone_buys_labels() -> None:
    facts = replace(GOOD, audited=Share(), drift="drift", new_labels=5000)
    assert decide(facts, POLICY, NOW).action == "ask_labels"


def test_drift_without_harm_is_let_be() -> None:
    decision = decide(replace(GOOD, audited=Share(right=392, n=400), drift="drift"), POLICY, NOW)
    assert decision.action == "none"
    assert "audited accuracy is at least 0.9" in decision.reason


@pytest.mark.parametrize("reported", [Share(), Share(right=2, n=4), Share(right=110, n=120)])
def test_a_drop_that_may_be_an_accident_is_no_harm(reported: Share) -> None:
    assert decide(replace(GOOD, reported=reported), POLICY, NOW).action == "none"


def test_too_few_labels_are_asked_for() -> None:
    decision = decide(replace(HARMED, new_labels=49), POLICY, NOW)
    assert decision.action == "ask_labels"
    assert "49 labels of 50 needed" in decision.reason


def test_a_retraining_cools_down() -> None:
    facts = replace(HARMED, last_retrain_at=NOW - 599)
    assert decide(facts, POLICY, NOW).action == "none"
    assert decide(facts, POLICY, NOW + 1).action == "retrain"


def test_one_retraining_at_a_time() -> None:
    assert decide(replace(HARMED, job_running=True), POLICY, NOW).action == "none"
    waiting = decide(replace(HARMED, waiting_version=2), POLICY, NOW)
    assert waiting.action == "none"
    assert "version 2" in waiting.reason


def test_without_a_baseline_harm_cannot_be_told() -> None:
    assert decide(replace(HARMED, baseline_accuracy=None), POLICY, NOW).action == "none"
