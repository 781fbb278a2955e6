"""The gates between a candidate and its approval.

    non_inferiority    on golden and eval rows together the candidate is at most `max_drop_points`
                       worse than the champion, by paired bootstrap
    recall_floors      every class is found at least as often as its floor, by Wilson bounds
    field_improvement  on held-out field rows the candidate is better than the champion

A gate passes only when a confidence bound says so, and fails only when one says the opposite; in
between, and with too few rows, it is "insufficient" and asks for labels.  Accuracy alone is never
a gate: a predictor of the majority class finds no row of the others, so `recall_floors` (each floor
is above zero) can never pass it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from cloud.gates.results import GateResult, Verdict
from cloud.gates.statistics import (
    Difference,
    Metric,
    below_p_value,
    holm,
    metric_of,
    paired_bootstrap,
    wilson,
)

Predictions: TypeAlias = Mapping[str, NDArray[np.int64]]
"""Class indices by split ("golden", "eval", "field"), each [n] in the dataset's row order."""

REGRESSION_SPLITS = ("golden", "eval")
FIELD_SPLIT = "field"


class GateSpec(BaseModel):
    """What a candidate is held to.

    Attributes:
        metric: what non-inferiority and improvement are measured in.
        max_drop_points: largest drop against the champion, in points (hundredths) of `metric`.
        min_recall: floor of every class's recall, in (0, 1).
        recall_floors: floors of single classes by name, instead of `min_recall`.
        confidence: of every bound, one-sided.
        min_samples: fewer golden and eval rows than this are insufficient.
        min_class_samples: fewer rows of a class than this are insufficient.
        min_field_samples: fewer held-out field rows than this are insufficient.
        bootstrap_rounds, seed: of the paired bootstrap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric = "macro_f1"
    max_drop_points: float = Field(default=2.0, gt=0, le=100)
    min_recall: float = Field(default=0.7, gt=0, lt=1)
    recall_floors: Mapping[str, float] = Field(default_factory=dict)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_samples: int = Field(default=100, ge=1)
    min_class_samples: int = Field(default=10, ge=1)
    min_field_samples: int = Field(default=20, ge=1)
    bootstrap_rounds: int = Field(default=2000, ge=100)
    seed: int = 0


class UnusablePredictions(ValueError):
    """Predictions and labels of a split do not fit together."""


def judge_candidate(
    champion: Predictions | None,
    candidate: Predictions,
    labels: Predictions,
    spec: GateSpec,
    *,
    classes: Sequence[str],
) -> list[GateResult]:
    """Judge a candidate, against the champion where there is one.

    Args:
        champion: the champion's answers on the same rows; `None` for a first version.
        candidate: the candidate's answers, made by the artefact that would be shipped.
        labels: the right answers.  Splits other than golden, eval and field are ignored.
        classes: class names by index.

    Returns:
        `recall_floors`; with a champion also `non_inferiority`; with a champion and a "field"
        split also `field_improvement`.

    Raises:
        UnusablePredictions: a split lacks predictions, or lengths or indices do not fit.
    """
    truth, answers = _pooled(labels, candidate, REGRESSION_SPLITS, len(classes))
    results = [_recall_floors(answers, truth, spec, classes)]
    if champion is None:
        return results
    _, old = _pooled(labels, champion, REGRESSION_SPLITS, len(classes))
    results.insert(0, _non_inferiority(old, answers, truth, spec, len(classes)))
    if FIELD_SPLIT in labels:
        truth, answers = _pooled(labels, candidate, (FIELD_SPLIT,), len(classes))
        _, old = _pooled(labels, champion, (FIELD_SPLIT,), len(classes))
        results.append(_field_improvement(old, answers, truth, spec, len(classes)))
    return results


def _non_inferiority(
    champion: NDArray[np.int64],
    candidate: NDArray[np.int64],
    labels: NDArray[np.int64],
    spec: GateSpec,
    classes: int,
) -> GateResult:
    gate = "non_inferiority"
    if len(labels) < spec.min_samples:
        return _too_few(gate, len(labels), spec.min_samples, "golden and eval rows")
    difference = _difference(champion, candidate, labels, spec, classes)
    margin = spec.max_drop_points / 100
    verdict: Verdict = "insufficient"
    if difference.low > -margin:
        verdict = "pass"
    elif difference.high < -margin:
        verdict = "fail"
    reason = f"{_describe(difference, spec)}; at most {spec.max_drop_points:g} may be lost"
    evidence = _evidence(difference, spec, len(labels)) | {"max_drop_points": spec.max_drop_points}
    return GateResult(gate, verdict, reason, evidence)


def _field_improvement(
    champion: NDArray[np.int64],
    candidate: NDArray[np.int64],
    labels: NDArray[np.int64],
    spec: GateSpec,
    classes: int,
) -> GateResult:
    gate = "field_improvement"
    if len(labels) < spec.min_field_samples:
        return _too_few(gate, len(labels), spec.min_field_samples, "held-out field rows")
    difference = _difference(champion, candidate, labels, spec, classes)
    verdict: Verdict = "insufficient"
    if difference.low > 0:
        verdict = "pass"
    elif difference.high < 0:
        verdict = "fail"
    reason = f"on the field's hold-out {_describe(difference, spec)}"
    return GateResult(gate, verdict, reason, _evidence(difference, spec, len(labels)))


def _recall_floors(
    candidate: NDArray[np.int64],
    labels: NDArray[np.int64],
    spec: GateSpec,
    classes: Sequence[str],
) -> GateResult:
    unknown = sorted(set(spec.recall_floors) - set(classes))
    if unknown:
        raise UnusablePredictions(f"recall floor of an unknown class {unknown[0]!r}")
    floors = [spec.recall_floors.get(name, spec.min_recall) for name in classes]
    support = np.bincount(labels, minlength=len(classes))
    hits = np.bincount(labels[labels == candidate], minlength=len(classes))
    p_values = holm(
        [
            below_p_value(int(k), int(n), floor)
            for k, n, floor in zip(hits, support, floors, strict=True)
        ]
    )
    per_class: dict[str, JsonValue] = {}
    below, unsure = [], []
    for index, name in enumerate(classes):
        k, n, floor = int(hits[index]), int(support[index]), floors[index]
        low, high = wilson(k, n, spec.confidence)
        per_class[name] = {"found": k, "n": n, "low": low, "high": high, "floor": floor}
        if p_values[index] < 1 - spec.confidence:
            below.append(f"{name} {k}/{n}")
        elif n < spec.min_class_samples or low < floor:
            unsure.append(f"{name} {k}/{n}")
    evidence: dict[str, JsonValue] = {
        "n": len(labels),
        "confidence": spec.confidence,
        "classes": per_class,
        "balanced_accuracy": _number(
            metric_of("balanced_accuracy", candidate, labels, len(classes))
        ),
    }
    if below:
        reason = f"recall is below its floor for {_list(below)}"
        return GateResult("recall_floors", "fail", reason, evidence)
    if unsure:
        reason = f"too few rows to say that recall reaches its floor for {_list(unsure)}"
        return GateResult("recall_floors", "insufficient", reason, evidence)
    reason = f"recall of all {len(classes)} classes is above its floor"
    return GateResult("recall_floors", "pass", reason, evidence)


def _pooled(
    labels: Predictions, answers: Predictions, splits: Sequence[str], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and answers of the splits that there are labels for, as class indices."""
    truth, given = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for split in splits:
        if split not in labels:
            continue
        if split not in answers or len(answers[split]) != len(labels[split]):
            raise UnusablePredictions(f"split {split!r} needs one prediction a label")
        truth.append(np.asarray(labels[split], np.int64))
        given.append(np.asarray(answers[split], np.int64))
    pair = np.concatenate(truth), np.concatenate(given)
    if any(len(part) and not (part.min() >= 0 and part.max() < classes) for part in pair):
        raise UnusablePredictions(f"class indices must be between 0 and {classes - 1}")
    return pair


def _difference(
    champion: NDArray[np.int64],
    candidate: NDArray[np.int64],
    labels: NDArray[np.int64],
    spec: GateSpec,
    classes: int,
) -> Difference:
    return paired_bootstrap(
        spec.metric,
        champion,
        candidate,
        labels,
        classes=classes,
        confidence=spec.confidence,
        rounds=spec.bootstrap_rounds,
        seed=spec.seed,
    )


def _too_few(gate: str, n: int, needed: int, what: str) -> GateResult:
    return GateResult(gate, "insufficient", f"{n} {what}, {needed} are needed", {"n": n})


def _describe(difference: Difference, spec: GateSpec) -> str:
    return (
        f"{spec.metric} {difference.champion:.3f} → {difference.candidate:.3f}, "
        f"{100 * difference.estimate:+.1f} points "
        f"({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    )


def _evidence(difference: Difference, spec: GateSpec, n: int) -> dict[str, JsonValue]:
    return {
        "metric": spec.metric,
        "n": n,
        "champion": difference.champion,
        "candidate": difference.candidate,
        "low": difference.low,
        "high": difference.high,
        "confidence": spec.confidence,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _list(items: Sequence[str], most: int = 5) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
