"""A against B on a virtual clock: what is found, what is not, and what does not mislead."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from edge_agent.measure import Comparison
from edge_agent.measure.comparison import UNKNOWN, interval
from tests.measure.virtual import SETTINGS, Machine, steady

FEW_S = SETTINGS.model_copy(update={"max_duration_s": 20.0})


def noisy(service_ms: float, seed: int) -> Callable[[float], float]:
    """Most calls take 1 % more or less, one in twenty three times as long."""
    generator = random.Random(seed)

    def service_s(_: float) -> float:
        interrupted = 3.0 if generator.random() < 0.05 else 1.0
        return service_ms / 1e3 * generator.uniform(0.99, 1.01) * interrupted

    return service_s


def test_a_gain_of_a_fifth_is_found_and_bounded() -> None:
    result = steady(0).compare(noisy(6.0, 1), noisy(5.0, 2), FEW_S)
    assert result.faster and not result.slower
    assert result.low <= 1.2 <= result.high
    assert result.speedup == pytest.approx(1.2, rel=0.02)
    assert result.baseline_p50_ms == pytest.approx(6.0, rel=0.02)
    assert result.candidate_p50_ms == pytest.approx(5.0, rel=0.02)


def test_a_loss_is_found() -> None:
    result = steady(0).compare(noisy(5.0, 1), noisy(6.0, 2), FEW_S)
    assert result.slower and not result.faster


def test_equal_ones_are_not_called_faster() -> None:
    results = [steady(0).compare(noisy(5.0, s), noisy(5.0, s + 100), FEW_S) for s in range(30)]
    assert not any(result.faster or result.slower for result in results)
    assert all(result.high / result.low < 1.03 for result in results)


def test_it_ends_as_soon_as_it_is_decided() -> None:
    machine = Machine(lambda _: 0.0)
    clear = machine.compare(noisy(10.0, 1), noisy(5.0, 2), FEW_S)
    assert clear.faster
    assert machine.now < 2.0


def test_the_least_duration_is_kept() -> None:
    machine = Machine(lambda _: 0.0)
    machine.compare(noisy(10.0, 1), noisy(5.0, 2), FEW_S.model_copy(update={"min_duration_s": 5.0}))
    assert machine.now >= 5.0


def test_what_stays_undecided_ends_when_the_time_is_up() -> None:
    generator = random.Random(3)

    def wild(_: float) -> float:
        return generator.uniform(0.001, 0.010)

    machine = Machine(lambda _: 0.0)
    result = machine.compare(wild, wild, FEW_S, time_limit_s=4.0)
    assert not result.faster and not result.slower
    assert 3.9 < machine.now <= 4.0


@pytest.mark.parametrize("gain", [1.0, 1.2])
def test_a_machine_that_slows_down_misleads_nobody(gain: float) -> None:
    """It halves its speed within the run, and the clock of a boost jumps up and down."""

    def drift(now: float) -> float:
        return (1 + now / 5) * (1.5 if int(now) % 2 else 1.0)

    result = steady(0).compare(
        lambda now: 0.005 * gain * drift(now), lambda now: 0.005 * drift(now), FEW_S
    )
    assert result.low <= gain <= result.high
    assert result.speedup == pytest.approx(gain, rel=0.01)
    assert result.faster == (gain > 1)


def test_the_caches_that_the_other_side_emptied_are_charged_to_nobody() -> None:
    """The first call behind the other system takes twice as long."""
    last: list[str] = [""]

    def side(name: str, service_s: float) -> Callable[[float], float]:
        def call(_: float) -> float:
            cold = last[0] != name
            last[0] = name
            return service_s * (2.0 if cold else 1.0)

        return call

    result = steady(0).compare(side("a", 0.012), side("b", 0.010), FEW_S)
    assert result.baseline_p50_ms == pytest.approx(12.0, rel=0.01)
    assert result.speedup == pytest.approx(1.2, rel=0.01)


def test_a_disturbance_is_told() -> None:
    machine = steady(0)
    assert machine.compare(noisy(6.0, 1), noisy(5.0, 2), FEW_S).disturbed == ""
    machine.waited_share = 0.3
    result = machine.compare(noisy(6.0, 1), noisy(5.0, 2), FEW_S)
    assert "30% of the time was spent waiting" in result.disturbed
    assert result.faster


def test_both_sides_get_the_same_samples_and_the_order_alternates() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[float], float]:
        def call(_: float) -> float:
            calls.append(name)
            return 0.01

        return call

    machine = Machine(lambda _: 0.0)
    machine.compare(side("a"), side("b"), FEW_S)
    pairs = calls[6:]  # behind the warm-up; a block is one call that counts not and one that does
    assert pairs[:12] == ["a", "a", "b", "b", "b", "b", "a", "a", "a", "a", "b", "b"]
    issued = machine.issued[6:]
    assert all(len(set(issued[at : at + 4])) == 1 for at in range(0, len(issued), 4))


def test_one_pair_says_nothing_and_still_travels_as_json() -> None:
    result = steady(0).compare(lambda _: 30.0, lambda _: 10.0, FEW_S)
    assert result.pairs == 1
    assert (result.low, result.high) == UNKNOWN
    assert not result.faster
    assert Comparison.model_validate_json(result.model_dump_json()) == result


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    median = math.log(2)  # of the exponential distribution
    missed = 0
    for _ in range(2000):
        low, high = interval(generator.exponential(size=60))
        missed += not low <= median <= high
    assert missed <= 20  # 1 % of 2000; the first look has half of that


@pytest.mark.parametrize("pairs", [9, 20, 61, 400])
@pytest.mark.parametrize("looks", [1, 3])
def test_the_interval_is_the_narrowest_that_order_statistics_allow(pairs: int, looks: int) -> None:
    allowed = 0.01 / (looks * (looks + 1)) / 2
    low, high = interval(np.arange(float(pairs)), looks)
    if binom.cdf(0, pairs, 0.5) > allowed:
        assert (low, high) == UNKNOWN
        return
    assert (low + high) / 2 == (pairs - 1) / 2
    assert binom.cdf(low, pairs, 0.5) <= allowed < binom.cdf(low + 1, pairs, 0.5)


def test_later_looks_are_held_to_more() -> None:
    ratios = np.random.default_rng(1).normal(1.2, 0.1, size=200)
    widths = [high - low for low, high in (interval(ratios, looks) for looks in (1, 4, 12))]
    assert widths == sorted(widths) and widths[0] < widths[-1]
