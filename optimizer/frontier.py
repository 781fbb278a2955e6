"""The frontier of candidates, and the choice of one.  Pure.

The choice: of the candidates that meet the budget, the one with the highest primary metric; of
equals, the fastest; of those, the smallest.  A budget already says what is fast enough, so speed
beyond it is worth less than being right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optimizer.budget import MetricName
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


def choose(candidates: Iterable[Candidate], primary: MetricName) -> Candidate | None:
    """The candidate to serve, or `None` where none meets the budget."""
    passed = [c for c in candidates if c.verdict == "PASS" and c.accuracy is not None]
    return min(passed, key=lambda c: _rank(c, primary), default=None)


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


def mark(candidates: Sequence[Candidate], primary: MetricName) -> list[Candidate]:
    """The candidates of one profile with `on_frontier` and `selected` set."""
    placed = [c for c in candidates if c.accuracy is not None and c.latency_ms is not None]
    points = [
        Point(c.latency_ms or 0.0, c.accuracy.metric(primary))
        for c in placed
        if c.accuracy is not None
    ]
    frontier = {c.name for c, on in zip(placed, pareto(points), strict=True) if on}
    chosen = choose(candidates, primary)
    name = chosen.name if chosen else None
    return [
        c.model_copy(update={"on_frontier": c.name in frontier, "selected": c.name == name})
        for c in candidates
    ]


def _rank(candidate: Candidate, primary: MetricName) -> tuple[float, float, float, str]:
    quality = candidate.accuracy.metric(primary) if candidate.accuracy else 0.0
    latency = math.inf if candidate.latency_ms is None else candidate.latency_ms
    size = math.inf if candidate.artifact_kib is None else candidate.artifact_kib
    return (-quality, latency, size, candidate.name)
