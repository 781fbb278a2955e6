from __future__ import annotations

import random

from fleet.rollouts.gates import WaveOutcomes, failure_gate
from fleet.rollouts.model import GateSpec, Outcomes
from fleet.rollouts.power import Noise, detectable


def test_larger_waves_find_smaller_harm_and_the_last_has_nothing_to_compare_with() -> None:
    waves = [{"pi": 60, "gpu": 40}, {"pi": 600, "gpu": 400}, {"pi": 5400, "gpu": 3600}]
    first, second, last = detectable(waves, GateSpec())
    assert (first.devices, first.control) == (100, 10_000)
    assert first.failure_increase is not None
    assert second.failure_increase is not None
    assert second.failure_increase < first.failure_increase / 2
    assert first.p99_ratio is not None
    assert second.p99_ratio is not None
    assert 1.15 < second.p99_ratio < first.p99_ratio < 1.3
    assert first.standing_out is not None
    assert first.profile_standing_out is not None
    assert first.standing_out < first.profile_standing_out
    assert last.control == 0
    assert (last.p99_ratio, last.standing_out) == (None, None)
    (outside,) = detectable([{"pi": 100}], GateSpec(), outside={"pi": 500, "gpu": 9})
    assert outside.control == 500
    assert outside.p99_ratio is not None


def test_handful_of_devices_proves_nothing() -> None:
    (wave, _) = detectable([{"pi": 3}, {"pi": 100}], GateSpec())
    assert (wave.p99_ratio, wave.standing_out, wave.profile_standing_out) == (None,) * 3
    (alone,) = detectable([{"pi": 100}], GateSpec(), noise=Noise(history=0))
    assert alone.failure_increase is not None
    assert alone.failure_increase > 0.1  # only the limit is left


def test_what_is_called_detectable_is_detected_that_often() -> None:
    noise = Noise(silent=0)
    (wave,) = detectable([{"pi": 300}], GateSpec(), noise=noise)
    assert wave.failure_increase is not None
    history = {"pi": Outcomes(responders=noise.history, failures=10)}
    rng = random.Random(1)
    found = 0
    for _ in range(200):
        failures = sum(rng.random() < 0.01 + wave.failure_increase for _ in range(300))
        decision = failure_gate(
            0,
            outcomes={"pi": WaveOutcomes(responders=300, failures=failures)},
            history=history,
            final=True,
            spec=GateSpec(),
        )
        found += decision is not None and decision.verdict == "fail"
    assert 182 <= found <= 199
