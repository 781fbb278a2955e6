"""Devices whose own operator lets them wait are neither failures nor waited for."""

from __future__ import annotations

import pytest

from fleet.rollouts.model import RolloutState, WavePlan

from .test_machine import Driver, P


@pytest.mark.parametrize(
    ("phase", "reason"), [(P.STAGED, "outside_window"), (P.DOWNLOADING, "paused")]
)
def test_a_device_that_waits_halts_no_rollout_and_may_still_come(phase, reason) -> None:
    driver = Driver(
        devices=2, waves=[WavePlan(percent=100, soak_s=10)], phase_timeout_s=100, reach_timeout_s=50
    )
    driver.start()
    driver.report(P.HEALTHY, "d0")
    driver.report(phase, "d1")
    driver.report(phase, "d1", reason=reason)
    assert driver.phase("d1") is phase
    assert driver.rollout.assignments["d1"].reason == reason
    driver.tick(101)
    assert driver.phase("d1") is P.UNREACHABLE
    assert driver.rollout.assignments["d1"].reason == reason
    driver.tick(11)
    assert driver.rollout.state is RolloutState.COMPLETED
    driver.report(P.HEALTHY, "d1")
    assert driver.phase("d1") is P.HEALTHY


def test_a_device_that_is_stuck_in_its_phase_still_times_out() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100, soak_s=10)], phase_timeout_s=100)
    driver.start()
    driver.report(P.STAGED, "d0", reason="anything")
    driver.tick(101)
    assert driver.phase("d0") is P.TIMED_OUT
