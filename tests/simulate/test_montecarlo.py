"""The promises of the gates, on many rollouts; `python -m bench.rollouts` has larger numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.rollouts.model import WavePlan
from fleet.simulate.montecarlo import EQUAL, FLEET, measure

ROLLOUTS = 40


@pytest.mark.slow
@pytest.mark.parametrize("offline", [0.0, 0.2])
@pytest.mark.parametrize(
    "version", ["failures +5 points", "p99 +30 %", "errors +3 points on one profile"]
)
def test_bad_version_is_halted_in_the_first_wave_that_holds_it(
    version: str, offline: float
) -> None:
    result = measure(version, ROLLOUTS // 2, offline=offline, seed=1000)
    assert result.halted_first >= 0.95 * result.rollouts, result


@pytest.mark.slow
@pytest.mark.parametrize("offline", [0.0, 0.2])
def test_version_equal_to_the_old_one_is_stopped_by_no_noise(offline: float) -> None:
    fleet = replace(FLEET, devices=600)
    waves = [WavePlan(count=150, soak_s=3600), WavePlan(percent=100, soak_s=3600)]
    result = measure(EQUAL, ROLLOUTS, offline=offline, fleet=fleet, waves=waves, seed=1000)
    assert result.stopped == 0, result
