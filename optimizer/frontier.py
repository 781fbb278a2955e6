"""The frontier of candidates, and the choice of one.  Pure.

The choice is made among the candidates that meet the budget, by what the budget prefers:

    speed       the fastest: a bound already says what accuracy is good enough
    accuracy    the fastest of those that are not significantly worse than the most accurate one,
                judged by their answers on the same items

Fast is told by the median, which scatters least: that the tail keeps its bound was judged before.
Of equally fast ones the more accurate comes first, then the smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.budget import MetricName, Preference
from optimizer.evaluate import Accuracy
from optimizer.paired import significantly_worse
from optimizer.task import Candidate


@dataclass(frozen=True)
class Point:
    """One candidate in the plane: `cost` is to be small, `quality` to be large."""

    cost: float
    quality: float


def pareto(points: Sequence[Point]) -> list[bool]:
    """For each point whether no other is at least as good in both and better in one.

    Of equal points all are on the frontier.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].quality))
    result = [False] * len(points)
    best = -math.inf
    best_cost = math.nan
    for index in order:
        point = points[index]
        if point.quality > best:
            best, best_cost = point.quality, point.cost
            result[index] = True
        elif point.quality == best and point.cost == best_cost:
            result[index] = True
    return result


def ranked(
    candidates: Iterable[Candidate],
    primary: MetricName,
    preference: Preference,
    labels: NDArray[np.int64] | None = None,
) -> list[Candidate]:
    """The candidates that may be served, the one to choose first.

    Args:
        labels: right classes of the items that the candidates answered, [n]; without them equal
            metrics alone count as not worse.
    """
    passed = [c for c in candidates if c.verdict == "PASS" and c.accuracy is not None]
    if preference == "accuracy" and passed:
        best = min(passed, key=lambda c: _by_accuracy(c, primary)).accuracy
        passed = [c for c in passed if not worse(c.accuracy, best, primary, labels)]
    return sorted(passed, key=lambda c: _by_speed(c, primary))


def worse(
    one: Accuracy | None,
    best: Accuracy | None,
    primary: MetricName,
    labels: NDArray[np.int64] | None,
) -> bool:
    """Whether the first is significantly less accurate; what cannot be compared is."""
    if one is None or best is None:
        return one is None
    if one.metric(primary) >= best.metric(primary):
        return False
    answers, others = np.asarray(one.predictions), np.asarray(best.predictions)
    if labels is None or not len(labels) == len(answers) == len(others):
        return True
    return significantly_worse(labels, answers, others, primary)


def choose(
    candidates: Iterable[Candidate],
    primary: MetricName,
    preference: Preference,
    labels: NDArray[np.int64] | None = None,
) -> Candidate | None:
    """The candidate to serve, or `None` where none meets the budget; see `ranked`."""
    return next(iter(ranked(candidates, primary, preference, labels)), None)


def nearest_miss(profile: str, candidates: Iterable[Candidate]) -> str:
    """One line: which candidate missed the budget by least, and by what."""
    start = f"no variant meets the budget of profile '{profile}'"
    missed = [c for c in candidates if c.verdict != "PASS"]
    judged = [c for c in missed if c.accuracy is not None]
    if judged:
        # What could not be decided comes after what surely missed: its distance is no distance.
        nearest = min(judged, key=lambda c: (c.verdict != "FAIL", c.distance))
    elif missed:
        nearest = missed[0]
    else:
        return f"{start}: there was none"
    return f"{start}; nearest is {nearest.name}: {nearest.reason}"


def mark(
    candidates: Sequence[Candidate], primary: MetricName, chosen: Candidate | None
) -> list[Candidate]:
    """The candidates of one profile with `on_frontier` and `selected` set.

    A few runs on some of the items place nothing on the frontier.
    """
    placed = [
        c
        for c in candidates
        if c.accuracy is not None and c.latency_ms is not None and c.fidelity != "probe"
    ]
    points = [
        Point(c.latency_ms or 0.0, c.accuracy.metric(primary))
        for c in placed
        if c.accuracy is not None
    ]
    frontier = {c.name for c, on in zip(placed, pareto(points), strict=True) if on}
    name = chosen.name if chosen else None
    return [
        c.model_copy(update={"on_frontier": c.name in frontier, "selected": c.name == name})
        for c in candidates
    ]


def _by_speed(candidate: Candidate, primary: MetricName) -> tuple[float, float, float, str]:
    quality, latency, size = _figures(candidate, primary)
    return (latency, -quality, size, candidate.name)


def _by_accuracy(candidate: Candidate, primary: MetricName) -> tuple[float, float, float, str]:
    quality, latency, size = _figures(candidate, primary)
    return (-quality, latency, size, candidate.name)


def _figures(candidate: Candidate, primary: MetricName) -> tuple[float, float, float]:
    quality = candidate.accuracy.metric(primary) if candidate.accuracy else 0.0
    latency = math.inf if candidate.latency_ms is None else candidate.latency_ms
    if candidate.measurement is not None:
        latency = candidate.measurement.p50_ms
    size = math.inf if candidate.artifact_kib is None else candidate.artifact_kib
    return quality, latency, size
