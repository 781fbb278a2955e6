from __future__ import annotations

from dataclasses import replace

from fleet.rollouts.model import GateSpec, RolloutState, WavePlan, WaveState
from fleet.simulate.virtual import VirtualFleet, run

WAVES = [
    WavePlan(count=20, soak_s=60),
    WavePlan(percent=20, soak_s=60),
    WavePlan(percent=100, soak_s=60),
]


def test_bad_version_is_halted_in_the_first_wave() -> None:
    for seed in range(5):
        result = run(VirtualFleet(1000, failure_probability=0.5), WAVES, seed=seed)
        assert result.state is RolloutState.HALTED
        assert result.waves == (WaveState.FAILED, WaveState.PENDING, WaveState.PENDING)
        assert result.offered == 20


def test_equal_version_completes_on_all_devices() -> None:
    result = run(VirtualFleet(600), WAVES)
    assert result.state is RolloutState.COMPLETED
    assert result.phases == {"healthy": 600}
    assert set(result.waves) == {WaveState.PASSED}


def test_rare_failures_within_the_limit_do_not_stop_a_rollout() -> None:
    states = {
        run(VirtualFleet(400, failure_probability=0.02), WAVES, seed=seed).state
        for seed in range(5)
    }
    assert states <= {RolloutState.COMPLETED, RolloutState.PAUSED}
    assert RolloutState.COMPLETED in states


def test_silent_failures_do_not_hide_behind_unreachable_devices() -> None:
    fleet = VirtualFleet(
        500, failure_probability=0.6, silent_probability=1.0, offline_probability=0.5
    )
    waves = [WavePlan(count=60, soak_s=60), *WAVES[1:]]
    for seed in range(5):
        result = run(fleet, waves, seed=seed)
        assert result.state is RolloutState.HALTED
        assert result.waves[0] is WaveState.FAILED


def test_late_returners_and_lost_connections_are_no_failures() -> None:
    fleet = VirtualFleet(200, offline_probability=0.3, late_probability=0.5, churn_probability=0.5)
    result = run(fleet, WAVES, seed=2)
    assert result.state is RolloutState.COMPLETED
    assert set(result.phases) <= {"healthy", "unreachable", "offered"}
    assert result.phases["unreachable"] < 0.3 * 200 + 20


def test_brief_devices_come_to_the_same_end() -> None:
    fleet = VirtualFleet(300, failure_probability=0.02)
    assert run(replace(fleet, brief=True), WAVES, seed=4).phases == run(fleet, WAVES, seed=4).phases


def test_fleet_that_is_all_offline_waits_for_a_person() -> None:
    result = run(VirtualFleet(50, offline_probability=1.0), WAVES)
    assert result.state is RolloutState.PAUSED
    assert result.waves[0] is WaveState.INCONCLUSIVE


def test_strict_gate_asks_a_person_where_the_first_wave_is_too_small() -> None:
    waves = [WavePlan(count=10), WavePlan(percent=100)]
    strict = run(VirtualFleet(100), waves, gate=GateSpec(require_bound=True))
    assert strict.state is RolloutState.PAUSED
    assert "up to" in strict.reason


def test_same_seed_gives_the_same_history() -> None:
    fleet = VirtualFleet(200, failure_probability=0.05, offline_probability=0.1)
    assert run(fleet, WAVES, seed=3) == run(fleet, WAVES, seed=3)
