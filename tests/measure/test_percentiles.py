from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from edge_agent.measure.percentiles import (
    binomial_cdf,
    breaks,
    holds,
    percentile,
    queries_needed,
    upper_bound,
)


@pytest.mark.parametrize(
    ("fraction", "over", "queries"),
    [
        (0.90, 0, 44), (0.90, 1, 64), (0.95, 0, 90), (0.95, 1, 130),
        (0.99, 0, 459), (0.99, 1, 662), (0.99, 2, 838), (0.99, 5, 1307), (0.99, 10, 2010),
        (0.999, 0, 4603), (0.999, 1, 6636),
    ],
)  # fmt: skip
def test_queries_needed_are_those_of_mlperf(fraction: float, over: int, queries: int) -> None:
    assert queries_needed(over, fraction) == queries
    assert holds(over, queries, fraction)
    assert not holds(over, queries - 1, fraction)


@pytest.mark.parametrize("trials", [1, 7, 459, 20_000, 1_000_000])
@pytest.mark.parametrize("probability", [0.001, 0.01, 0.1, 0.5])
def test_the_binomial_distribution_is_that_of_scipy(trials: int, probability: float) -> None:
    mean = trials * probability
    for successes in {0, int(mean * 0.7), int(mean), int(mean * 1.3) + 1, trials}:
        expected = float(binom.cdf(successes, trials, probability))
        assert binomial_cdf(successes, trials, probability) == pytest.approx(
            expected, rel=1e-6, abs=1e-12
        )


def test_nothing_is_proven_by_few_queries() -> None:
    assert not holds(0, 20, 0.99)
    assert not breaks(0, 20, 0.99)


def test_a_percentile_cannot_hold_and_break() -> None:
    for over in range(0, 60, 3):
        assert not (holds(over, 2000, 0.99) and breaks(over, 2000, 0.99))
    assert breaks(60, 2000, 0.99)


def test_percentiles_are_nearest_ranks() -> None:
    values = list(range(1, 201))
    assert percentile(values, 0.99) == 198
    assert percentile(values, 0.5) == 100
    assert percentile(values, 1.0) == 200
    assert percentile([3.0], 0.01) == 3.0


@pytest.mark.parametrize("fraction", [0.0, 1.1, float("nan")])
def test_a_percentile_outside_of_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        percentile([1.0], fraction)
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 0.5)


def test_the_upper_bound_covers_the_true_percentile_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    true_p99 = -np.log(0.01)  # of the exponential distribution
    bounds = [upper_bound(generator.exponential(size=800), 0.99) for _ in range(500)]
    missed = sum(bound is not None and bound < true_p99 for bound in bounds)
    assert missed <= 14  # 1 % of 500, with room for chance


def test_the_upper_bound_of_a_small_sample_is_not_made_up() -> None:
    assert upper_bound(np.ones(458), 0.99) is None
    assert upper_bound(np.ones(459), 0.99) == 1.0
    assert upper_bound([], 0.99) is None


def test_the_upper_bound_is_the_smallest_limit_that_holds() -> None:
    values = np.arange(1.0, 1001.0)
    bound = upper_bound(values, 0.99)
    assert bound is not None
    assert holds(int((values > bound).sum()), 1000, 0.99)
    assert not holds(int((values > bound - 1).sum()), 1000, 0.99)
