"""The climb over tables of times that nobody measured: noise is drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pytest

from optimizer.budget import Outcome, Preference
from optimizer.rungs import SMALL, Look, Rungs
from optimizer.task import Fidelity

NOISE: Final[dict[Fidelity, float]] = {"probe": 0.12, "quick": 0.04, "full": 0.015}
MARGIN: Final[dict[Fidelity, float]] = {"probe": 0.3, "quick": 0.1, "full": 0.04}
ALLOWED_LOSS: Final = 0.02


@dataclass
class Table:
    """Points of 2 members × 7 recipes × 2 runtimes × 3 numbers of threads, and their truth."""

    seed: int
    noise: float = 1.0
    taken: list[tuple[int, Fidelity]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        size = np.exp(rng.normal(0, 1.0, (2, 1, 1, 1)))
        recipe = np.exp(rng.normal(0, 0.6, (1, 7, 1, 1)))
        runtime = np.exp(rng.normal(0, 0.4, (2, 7, 2, 1)))
        threads = np.exp(rng.normal(0, 0.3, (2, 7, 2, 3)))
        self.times = (size * recipe * runtime * threads).reshape(-1)
        loss = np.abs(rng.normal(0, 0.015, (2, 7, 2, 1))) * np.ones((1, 1, 1, 3))
        self.quality = 0.95 - loss.reshape(-1)
        self.rng = rng

    def look(self, point: int, fidelity: Fidelity) -> Look:
        self.taken.append((point, fidelity))
        quality = float(self.quality[point])
        if fidelity == "probe":  # some of the items only
            quality += float(self.rng.normal(0, 0.005))
        misses = 0.95 - quality > ALLOWED_LOSS + (0.02 if fidelity == "probe" else 0.0)
        time = self.times[point] * np.exp(self.rng.normal(0, NOISE[fidelity] * self.noise))
        outcome = "FAIL" if misses else "PASS" if fidelity == "full" else "INCONCLUSIVE"
        return Look(fidelity, outcome, float(time), MARGIN[fidelity], quality)

    def worse(self, one: int, best: int) -> bool:
        return bool(self.quality[one] < self.quality[best] - 0.008)

    def best(self, preference: Preference, points: list[int]) -> int:
        """The right choice among `points`."""
        passing = [p for p in points if 0.95 - self.quality[p] <= ALLOWED_LOSS]
        if preference == "accuracy":
            top = max(passing, key=lambda p: self.quality[p])
            passing = [p for p in passing if not self.worse(p, top)]
        return min(passing, key=lambda p: self.times[p])


def climbed(table: Table, preference: Preference) -> Rungs:
    rungs = Rungs(len(table.times), table.look, preference, table.worse)
    rungs.climb()
    return rungs


@pytest.mark.parametrize("preference", ["speed", "accuracy"])
def test_few_full_measurements_find_what_measuring_everything_finds(
    preference: Preference,
) -> None:
    shares, fractions = [], []
    for seed in range(200):
        table = Table(seed)
        everything = list(range(len(table.times)))
        if all(0.95 - table.quality[p] > ALLOWED_LOSS for p in everything):
            continue
        rungs = climbed(table, preference)
        passed = [p for p, look in rungs.looks.items() if look.fidelity == "full" and look.open]
        found = table.best(preference, passed)
        shares.append(table.times[table.best(preference, everything)] / table.times[found])
        fractions.append(rungs.measured / len(everything))
    assert len(shares) > 150
    assert np.mean(shares) >= 0.98
    assert np.mean(np.array(shares) >= 0.95) >= 0.95
    assert np.mean(fractions) <= 0.1
    assert max(fractions) <= 0.15


def test_where_accuracy_is_preferred_the_most_accurate_is_measured_in_full_too() -> None:
    """Point 19 is the slowest and a little more accurate; the choice refers to it."""

    def look(point: int, fidelity: Fidelity) -> Look:
        outcome = "PASS" if fidelity == "full" else "INCONCLUSIVE"
        return Look(fidelity, outcome, 1.0 + point, 0.05, 0.95 if point == 19 else 0.94)

    for preference, fidelity in (("accuracy", "full"), ("speed", "probe")):
        rungs = Rungs(20, look, preference)
        rungs.climb()
        assert rungs.looks[19].fidelity == fidelity
        assert rungs.looks[0].fidelity == "full"


def test_each_point_is_looked_at_once_for_each_fidelity() -> None:
    table = Table(1)
    climbed(table, "speed")
    assert len(set(table.taken)) == len(table.taken)
    quick = sum(fidelity == "quick" for _, fidelity in table.taken)
    assert quick <= len(table.times) / 2


def test_a_small_grid_and_an_exhaustive_search_measure_everything_in_full() -> None:
    small = Table(1)
    rungs = Rungs(SMALL, small.look, "speed")
    rungs.climb()
    assert small.taken == [(point, "full") for point in range(SMALL)]
    table = Table(1)
    rungs = Rungs(len(table.times), table.look, "speed", everything=True)
    rungs.climb()
    assert rungs.measured == len(table.times)


def test_what_surely_fails_is_not_looked_at_again() -> None:
    def look(point: int, fidelity: Fidelity) -> Look:
        seen.append((point, fidelity))
        return Look(fidelity, "FAIL" if point % 2 else "INCONCLUSIVE", 1.0 + point, 0.1)

    seen: list[tuple[int, Fidelity]] = []
    Rungs(20, look, "speed").climb()
    assert all(fidelity == "probe" for point, fidelity in seen if point % 2)


def test_while_nothing_passes_the_search_goes_on() -> None:
    def look(point: int, fidelity: Fidelity) -> Look:
        passes = fidelity == "full" and point == 17
        outcome = "PASS" if passes else "FAIL" if fidelity == "full" else "INCONCLUSIVE"
        return Look(fidelity, outcome, 1.0 + point, 0.0)

    rungs = Rungs(20, look, "speed")
    rungs.climb()
    assert rungs.looks[17].outcome == "PASS"
    assert rungs.measured == 18


@pytest.mark.parametrize("outcome", ["INVALID", "INCONCLUSIVE"])
def test_on_a_machine_that_is_too_busy_the_search_gives_up(outcome: Outcome) -> None:
    def look(point: int, fidelity: Fidelity) -> Look:
        return Look(fidelity, outcome if fidelity == "full" else "INCONCLUSIVE", 1.0 + point, 0.1)

    rungs = Rungs(40, look, "speed")
    rungs.climb()
    assert rungs.gave_up
    assert rungs.measured == 12


def test_a_point_that_might_still_pass_says_what_beats_it() -> None:
    rungs = climbed(Table(3), "speed")
    best = min(
        (p for p, look in rungs.looks.items() if look.fidelity == "full" and look.open),
        key=lambda p: rungs.looks[p].time_ms or 0.0,
    )
    assert set(rungs.beaten_by.values()) == {best}
    assert all(rungs.looks[p].open and rungs.looks[p].fidelity != "full" for p in rungs.beaten_by)


def test_at_a_high_rate_more_instances_are_tried_before_a_lower_latency() -> None:
    """Points 0 to 9 are faster but overloaded; their bound shows only in full."""

    def look(point: int, fidelity: Fidelity) -> Look:
        overloaded = point < 10
        outcome = "INCONCLUSIVE"
        if fidelity == "full":
            outcome = "FAIL" if overloaded else "PASS"
        return Look(fidelity, outcome, 1.0 + point / 100, 0.05, load=0.97 if overloaded else 0.4)

    rungs = Rungs(20, look, "speed")
    rungs.climb()
    assert rungs.looks[10].outcome == "PASS"
    assert rungs.measured <= 3


def test_when_the_time_is_up_what_was_found_stands() -> None:
    table = Table(1)
    limit = 50
    rungs = Rungs(
        len(table.times), table.look, "speed", more=lambda fidelity: len(table.taken) < limit
    )
    rungs.climb()
    assert len(rungs.looks) == len(table.taken) == limit
