"""When is a retraining due?  A pure decision.

Drift alone never starts one: it buys labels.  What starts one is harm that labels confirm: the
accuracy in the field, by its upper confidence bound, is lower than the version's own accuracy by
more than the policy allows.  There are two ways to confirm it, each with half of the error allowed:

    audited    labels of annotators, who were given uniform samples whatever the answer was: an
               unbiased estimate of the accuracy
    reported   corrections of users, who mostly speak up when an answer is wrong: samples without a
               correction count as right, so the true accuracy is at most this
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cloud.gates.statistics import wilson

Action = Literal["none", "ask_labels", "retrain"]


class RetrainPolicy(BaseModel):
    """The project's `retrain` section.

    Attributes:
        min_labels: fewest labelled field samples that the champion has not been trained on.
        max_accuracy_drop_points: loss of accuracy, in points (hundredths), that is no harm yet.
        cooldown_s: least seconds between the starts of two retrainings.
        automatic: whether a job is started, or a person only told that one is due.
        confidence: that harm is no accident, one-sided.
        min_answers: fewer (effective) answers than this confirm nothing.
        window: newest uniform samples that are looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_labels: int = Field(default=200, ge=1)
    max_accuracy_drop_points: float = Field(default=5.0, gt=0, le=100)
    cooldown_s: float = Field(default=3600.0, ge=0)
    automatic: bool = False
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_answers: int = Field(default=20, ge=1)
    window: int = Field(default=128, ge=1)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of right answers, and the (effective) number of answers that it was found on."""

    right: float = 0.0
    n: float = 0.0


@dataclass(frozen=True, slots=True)
class RetrainFacts:
    """What is known about a model's champion.

    Attributes:
        baseline_accuracy: the version's own accuracy, when it was judged; `None` if unknown.
        audited, reported: accuracy in the field, see the module.
        drift: verdict of the fleet's newest drift report; `None` without one.
        new_labels: labelled field samples that the champion was not trained on.
        last_retrain_at: when the newest retraining was started; `None` if never.
        job_running: a retraining is queued or running.
        waiting_version: a newer version that waits for a person or is rolling out.
    """

    model: str
    version: int
    baseline_accuracy: float | None
    audited: Share = Share()
    reported: Share = Share()
    drift: Literal["ok", "drift", "insufficient"] | None = None
    new_labels: int = 0
    last_retrain_at: float | None = None
    job_running: bool = False
    waiting_version: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What is due, and why in one line."""

    action: Action
    reason: str


def decide(facts: RetrainFacts, policy: RetrainPolicy, now: float) -> Decision:
    """Decide about one model; `now` in seconds since the epoch."""
    if facts.job_running:
        return Decision("none", "a retraining is under way")
    if facts.waiting_version is not None:
        return Decision("none", f"version {facts.waiting_version} waits to replace the champion")
    harm = _harm(facts, policy)
    if harm is None:
        return _without_harm(facts, policy)
    if facts.new_labels < policy.min_labels:
        return Decision(
            "ask_labels", f"{harm}, but {facts.new_labels} labels of {policy.min_labels} needed"
        )
    if facts.last_retrain_at is not None:
        left = facts.last_retrain_at + policy.cooldown_s - now
        if left > 0:
            return Decision("none", f"{harm}, but cooling down for another {left:.0f} s")
    return Decision("retrain", f"{harm}; {facts.new_labels} labels to learn from")


def _harm(facts: RetrainFacts, policy: RetrainPolicy) -> str | None:
    """Confirmed harm in words, or `None`."""
    if facts.baseline_accuracy is None:
        return None
    bearable = facts.baseline_accuracy - policy.max_accuracy_drop_points / 100
    confidence = 1 - (1 - policy.confidence) / 2
    for how, share in (("audited", facts.audited), ("reported", facts.reported)):
        _, high = wilson(share.right, share.n, confidence)
        if share.n >= policy.min_answers and high < bearable:
            return (
                f"{how} accuracy in the field is at most {high:.3f}, "
                f"the version was judged at {facts.baseline_accuracy:.3f}"
            )
    return None


def _without_harm(facts: RetrainFacts, policy: RetrainPolicy) -> Decision:
    if facts.baseline_accuracy is None:
        return Decision("none", "the version's own accuracy is unknown, so harm cannot be told")
    if facts.drift != "drift":
        return Decision("none", "no harm is confirmed and the inputs have not drifted")
    bearable = facts.baseline_accuracy - policy.max_accuracy_drop_points / 100
    low, _ = wilson(facts.audited.right, facts.audited.n, policy.confidence)
    if low >= bearable:
        return Decision("none", f"inputs drifted, but audited accuracy is at least {low:.3f}")
    return Decision("ask_labels", "inputs drifted; labels of uniform samples will tell the harm")
