from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.drift import DriftSettings
from cloud.drift.judge import (
    VersionReference,
    false_discovery_level,
    judge_devices,
    judge_fleet,
    p_value,
    quantile,
)
from edge_agent.drift import SIGNALS, Reference, Summary, null_threshold

Rows = NDArray[np.float64]


def draw(n: int, seed: int, shift: float = 0.0) -> Rows:
    """Skewed, correlated signals, as real ones are."""
    rng = np.random.default_rng(seed)
    rows = rng.gamma(2.0, size=(n, SIGNALS)) @ np.tri(SIGNALS) * 0.3
    return np.asarray(rows + shift * rows.std(axis=0))


def reference(rows: int = 500, seed: int = 1) -> VersionReference:
    signals = draw(rows, seed)
    summary = Summary()
    summary.add(signals)
    return VersionReference(f"{rows}-{seed}", Reference(signals, summary))


@pytest.mark.parametrize("n", [33, 64, 128])
def test_false_alarms_are_as_rare_as_wished_at_any_n(n: int) -> None:
    settings = DriftSettings(false_alarm=0.02)
    alarms = 0
    for world in range(4):  # a reference is a draw too: one unlucky one must not decide
        of_version = reference(seed=100 + world)
        for window in range(100):
            judged = judge_fleet([(of_version, draw(n, 10_000 * world + window))], settings)
            alarms += judged.statistic > judged.threshold
    assert alarms / 400 <= 0.05


@pytest.mark.parametrize("n", [33, 1000])
def test_the_threshold_is_the_one_at_the_actual_n(n: int) -> None:
    of_version = reference()
    judged = judge_fleet([(of_version, draw(n, 2))], DriftSettings(false_alarm=0.01, draws=2000))
    expected = null_threshold(of_version.reference.signals, n, 0.01, 0)
    assert judged.threshold == pytest.approx(expected)


def test_a_shift_is_found_and_its_signal_named() -> None:
    rows = draw(64, 2)
    rows[:, 3] += 1.5 * draw(500, 1)[:, 3].std()
    judged = judge_fleet([(reference(), rows)], DriftSettings())
    assert judged.statistic > judged.threshold
    assert judged.p_value < 0.001
    assert next(iter(judged.moved)) == "std"


def test_profiles_are_held_against_their_own_references() -> None:
    other = draw(500, 5) + 3.0
    summary = Summary()
    summary.add(other)
    shifted = VersionReference("other", Reference(other, summary))
    judged = judge_fleet(
        [(reference(), draw(60, 6)), (shifted, draw(60, 7) + 3.0)], DriftSettings()
    )
    assert judged.n == 120
    assert judged.statistic <= judged.threshold


def test_a_mild_shift_everywhere_is_found_by_the_fleet_and_not_by_devices() -> None:
    of_version = reference(2000)
    devices = {f"d{n}": (of_version, draw(64, 100 + n, shift=0.12)) for n in range(20)}
    alone = judge_devices(devices, DriftSettings())
    assert sum(verdict.statistic > verdict.threshold for verdict in alone.values()) <= 3
    merged = np.concatenate([rows for _, rows in devices.values()])
    judged = judge_fleet([(of_version, merged)], DriftSettings())
    assert judged.statistic > judged.threshold


def test_one_bad_device_is_found_among_many_good_ones() -> None:
    of_version = reference()
    devices = {f"d{n}": (of_version, draw(64, 200 + n)) for n in range(50)}
    devices["bad"] = (of_version, draw(64, 999, shift=1.0))
    judged = judge_devices(devices, DriftSettings())
    drifted = {name for name, verdict in judged.items() if verdict.statistic > verdict.threshold}
    assert "bad" in drifted
    assert len(drifted) <= 3


def test_good_devices_rarely_alarm_however_many_there_are() -> None:
    of_version = reference(2000)
    devices = {f"d{n}": (of_version, draw(64, 5000 + n)) for n in range(300)}
    judged = judge_devices(devices, DriftSettings())
    assert sum(verdict.statistic > verdict.threshold for verdict in judged.values()) <= 3


def test_no_devices_are_no_error() -> None:
    assert judge_devices({}, DriftSettings()) == {}


def test_benjamini_and_hochberg_pick_the_textbook_level() -> None:
    p_values = [0.039, 0.001, 0.008, 0.041, 0.6]
    assert false_discovery_level(p_values, 0.05) == pytest.approx(0.02)
    assert false_discovery_level([0.9, 0.8], 0.05) == pytest.approx(0.025)


def test_the_tail_of_p_values_goes_on_where_the_draws_end() -> None:
    rng = np.random.default_rng(0)
    null = rng.chisquare(12, 2000)
    assert p_value(0.0, null) == 1.0
    assert p_value(float(np.median(null)), null) == pytest.approx(0.5, abs=0.01)
    assert p_value(60.0, null) < 1e-5
    assert p_value(60.0, null) > p_value(80.0, null)
    assert quantile(null, 0.05) == pytest.approx(21.03, abs=1.0)
    assert quantile(null, 1e-5) == pytest.approx(44.0, abs=5.0)
