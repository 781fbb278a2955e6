from __future__ import annotations

import numpy as np
import pytest

from fleet.rollouts.statistics.adjust import without_baseline
from fleet.rollouts.statistics.bounds import wilson, wilson_lower
from fleet.rollouts.statistics.exact import Counts, binomial_tail, stratified_tail
from fleet.rollouts.statistics.multiple import holm, wave_level
from fleet.rollouts.statistics.ranks import greater, shift


def test_wilson_bounds_agree_with_published_values() -> None:
    # Newcombe 1998, table I: 81/263 at 95 % two-sided is (0.2553, 0.3662); 0/20 is (0, 0.1611).
    assert wilson(81, 263, 0.975) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20, 0.975) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_many_wilson_bounds_are_those_of_one() -> None:
    counts, n = np.array([0.0, 3.0, 50.0]), np.array([10.0, 20.0, 50.0])
    expected = [wilson(int(c), int(m), 0.95)[0] for c, m in zip(counts, n, strict=True)]
    assert wilson_lower(counts, n, 0.95) == pytest.approx(expected)


def test_exact_test_agrees_with_fishers_tea() -> None:
    # Fisher 1935, eight cups, four of each: all four right 1/70, three or more 17/70.
    assert stratified_tail([Counts(4, 4, 4, 0)]) == pytest.approx(1 / 70)
    assert stratified_tail([Counts(4, 3, 4, 1)]) == pytest.approx(17 / 70)


def test_exact_test_adds_up_strata_that_differ() -> None:
    # Two strata in which each side has the same share: nothing stands out, in spite of the totals.
    even = [Counts(90, 9, 10, 1), Counts(10, 9, 90, 81)]
    assert stratified_tail(even) > 0.3
    together = Counts(100, 18, 100, 82)
    assert stratified_tail([together]) == pytest.approx(1.0)
    assert stratified_tail([Counts(4, 4, 4, 0)] * 2) == pytest.approx((1 / 70) ** 2)
    assert stratified_tail([]) == 1.0


def test_binomial_tail() -> None:
    assert binomial_tail(0, 10, 0.1) == 1.0
    assert binomial_tail(2, 10, 0.1) == pytest.approx(0.2639, abs=1e-4)
    assert binomial_tail(3, 2, 0.1) == 0.0
    assert binomial_tail(1, 5, 0.0) == 0.0


def test_rank_test_agrees_with_a_worked_example() -> None:
    # Two groups of five without overlap: U = 25; z = (12.5 - 0.5) / sqrt(25 * 11 / 12).
    low, high = np.arange(5.0), np.arange(5.0) + 10
    assert greater([(high, low)]) == pytest.approx(0.0061, abs=1e-4)
    assert greater([(low, high)]) > 0.99
    assert greater([(np.ones(5), np.ones(5))]) == 1.0
    assert greater([(np.empty(0), low)]) == 1.0


def test_rank_test_keeps_its_level_where_strata_differ() -> None:
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(1000):
        fast = rng.normal(0, 1, 30), rng.normal(0, 1, 10)
        slow = rng.normal(9, 1, 5), rng.normal(9, 1, 40)
        alarms += greater([fast, slow]) < 0.05
    assert 25 <= alarms <= 70


def test_far_tail_of_the_rank_test_is_conservative_for_a_handful_of_devices() -> None:
    rng = np.random.default_rng(3)
    alarms = sum(greater([(rng.random(5), rng.random(200))]) < 0.001 for _ in range(4000))
    assert alarms <= 4


def test_shift_is_that_of_the_strata_not_of_their_mixture() -> None:
    rng = np.random.default_rng(4)
    fast = rng.normal(0.3, 0.1, 100), rng.normal(0, 0.1, 10)
    slow = rng.normal(5.3, 0.1, 10), rng.normal(5, 0.1, 100)
    assert shift([fast, slow]) == pytest.approx(0.3, abs=0.06)
    assert shift([]) == 0.0


def test_baselines_take_the_differences_between_devices_out() -> None:
    rng = np.random.default_rng(5)
    own = rng.normal(0, 1, 200)
    after, before = own + rng.normal(0, 0.1, 200), own + rng.normal(0, 0.1, 200)
    before[150] = np.nan
    after[0] = 1e3  # one broken device
    strata = [((after[:100] + 0.2, before[:100]), (after[100:], before[100:]))]
    ((treated, control),) = without_baseline(strata)
    assert np.std(control[np.arange(100) != 50]) < 0.3
    assert np.median(treated) - np.median(control) == pytest.approx(0.2, abs=0.05)
    assert np.isfinite(treated).all()
    assert np.isfinite(control).all()


def test_holm_rejects_step_by_step() -> None:
    # Holm 1979: 0.01 ≤ 0.05/4, 0.0134 ≤ 0.05/3, 0.02 ≤ 0.05/2, 0.06 > 0.05.
    p_values = {"a": 0.02, "b": 0.01, "c": 0.06, "d": 0.0134}
    assert holm(p_values, 0.05) == {"a", "b", "d"}
    assert holm({"a": 0.03, "b": 0.04}, 0.05) == frozenset()
    assert holm({"a": float("nan")}, 0.05) == frozenset()
    assert holm({}, 0.05) == frozenset()


def test_levels_of_all_waves_stay_within_the_whole() -> None:
    assert sum(wave_level(0.01, wave) for wave in range(60)) <= 0.01
    assert wave_level(0.01, 0) == 0.005
