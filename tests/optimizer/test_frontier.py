from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.measure import Measurement
from optimizer.evaluate import Accuracy, score
from optimizer.frontier import Point, choose, mark, nearest_miss, pareto, ranked
from optimizer.task import Candidate

grid = st.integers(0, 6).map(float)


def candidate(name: str, f1: float | None = 0.9, latency: float = 1.0, **more: Any) -> Candidate:
    accuracy = None
    if f1 is not None:
        accuracy = Accuracy(accuracy=0.5, macro_f1=f1, balanced_accuracy=0.5, recall={}, n=1)
    fields: dict[str, Any] = {"verdict": "PASS", "latency_ms": latency, "accuracy": accuracy}
    return Candidate(
        profile="p", name=name, member="m", recipe="r", runtime="onnxruntime", precision="fp32",
        **(fields | more),
    )  # fmt: skip


@given(st.lists(st.builds(Point, grid, grid), max_size=12))
def test_the_frontier_is_what_nothing_dominates(points: list[Point]) -> None:
    def dominated(p: Point) -> bool:
        return any(
            o.cost <= p.cost
            and o.quality >= p.quality
            and (o.cost, o.quality) != (p.cost, p.quality)
            for o in points
        )

    assert pareto(points) == [not dominated(point) for point in points]


LABELS = np.arange(300, dtype=np.int64) % 10


def answered(wrong: int) -> Accuracy:
    """Of a variant that misses the first `wrong` items."""
    answers = LABELS.copy()
    answers[:wrong] = (answers[:wrong] + 1) % 10
    return score(answers, LABELS)


def test_where_speed_is_preferred_the_fastest_that_passed_is_chosen() -> None:
    found = [
        candidate("right", 0.95, 3.0),
        candidate("fast", 0.90, 0.1),
        candidate("faster but over budget", 0.99, 0.01, verdict="FAIL"),
    ]
    assert [c.name for c in ranked(found, "macro_f1", "speed")] == ["fast", "right"]


def timed(name: str, p50_ms: float, p99_ms: float) -> Candidate:
    measured = Measurement(
        scenario="single_stream", verdict="PASS", reason="", queries=1000, duration_s=1.0,
        qps=1000.0, mean_ms=p50_ms, p50_ms=p50_ms, p90_ms=p99_ms, p95_ms=p99_ms, p99_ms=p99_ms,
        percentile=0.99, upper_bound_ms=p99_ms, target_latency_ms=None, target_qps=None,
        over_limit=0, quick=True, seed=0, peak_rss_mib=1.0, canary_ms=1.0, canary_ratio=1.0,
        waited_share=0.0, load_per_core=0.0, runs=1, provenance={},
    )  # fmt: skip
    return candidate(name, latency=p99_ms, measurement=measured)


def test_fast_is_told_by_the_median_for_one_late_answer_is_chance() -> None:
    found = [timed("steady", 2.0, 2.1), timed("fast", 1.0, 5.0)]
    assert [c.name for c in ranked(found, "macro_f1", "speed")] == ["fast", "steady"]


def test_where_accuracy_is_preferred_what_is_surely_worse_is_not_chosen_however_fast() -> None:
    found = [
        candidate("right", latency=3.0, accuracy=answered(6)),
        candidate("lucky", latency=1.0, accuracy=answered(7)),
        candidate("worse", latency=0.1, accuracy=answered(30)),
    ]
    assert [c.name for c in ranked(found, "macro_f1", "accuracy", LABELS)] == ["lucky", "right"]
    assert choose(found, "macro_f1", "accuracy") == found[0]  # nothing to compare answers by


def test_of_equally_fast_ones_the_more_accurate_is_chosen_then_the_smaller() -> None:
    found = [
        candidate("large", artifact_kib=9.0),
        candidate("small", artifact_kib=3.0),
        candidate("wrong", 0.5, artifact_kib=1.0),
    ]
    names = [c.name for c in ranked(found, "macro_f1", "speed")]
    assert names == ["small", "large", "wrong"]


def test_nothing_is_chosen_where_nothing_passed() -> None:
    undecided = [candidate(v, verdict=v) for v in ("FAIL", "INCONCLUSIVE", "INVALID")]
    assert choose(undecided, "macro_f1", "speed") is None
    assert not any(c.selected for c in mark(undecided, "macro_f1", None))


def test_the_nearest_miss_is_a_sure_one_with_the_least_overshoot() -> None:
    line = nearest_miss(
        "pi",
        [
            candidate("far", verdict="FAIL", distance=2.0, reason="p99 latency 9 ms > 3 ms"),
            candidate("near", verdict="FAIL", distance=0.1, reason="bundle 110 KiB > 100 KiB"),
            candidate("open", verdict="INCONCLUSIVE", reason="memory was not established"),
            candidate("broken", None, verdict="INVALID", reason="nncf is not installed here"),
        ],
    )
    assert line == (
        "no variant meets the budget of profile 'pi'; nearest is near: bundle 110 KiB > 100 KiB"
    )


def test_a_variant_that_was_hardly_looked_at_is_not_on_the_frontier() -> None:
    found = [
        candidate("a"),
        candidate("b", latency_ms=None),
        candidate("c", latency=0.1, fidelity="probe"),
    ]
    assert [c.on_frontier for c in mark(found, "macro_f1", None)] == [True, False, False]
