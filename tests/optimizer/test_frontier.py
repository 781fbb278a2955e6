from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from optimizer.evaluate import Accuracy
from optimizer.frontier import Point, choose, mark, nearest_miss, pareto
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


def test_the_most_accurate_within_budget_is_chosen() -> None:
    best = choose(
        [
            candidate("fast", 0.90, 0.1),
            candidate("right", 0.95, 3.0),
            candidate("better but over budget", 0.99, verdict="FAIL"),
        ],
        "macro_f1",
    )
    assert best is not None
    assert best.name == "right"


def test_of_equally_accurate_ones_the_fastest_is_chosen() -> None:
    best = choose([candidate("slow", latency=2), candidate("fast", latency=1)], "macro_f1")
    assert best is not None
    assert best.name == "fast"


def test_nothing_is_chosen_where_nothing_passed() -> None:
    undecided = [candidate(v, verdict=v) for v in ("FAIL", "INCONCLUSIVE", "INVALID")]
    assert choose(undecided, "macro_f1") is None
    assert not any(c.selected for c in mark(undecided, "macro_f1"))


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


def test_a_variant_that_was_not_timed_is_not_on_the_frontier() -> None:
    marked = mark([candidate("a"), candidate("b", latency_ms=None)], "macro_f1")
    assert [c.on_frontier for c in marked] == [True, False]
