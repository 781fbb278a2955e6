"""Devices that come while a rollout goes on, and those that return after it ended."""

from __future__ import annotations

import pytest

from fleet.rollouts import events as ev
from fleet.rollouts.model import RolloutState, WavePlan, WaveState

from .test_machine import NEW, OLD, Driver, P


def join(driver: Driver, device: str = "new", profile: str = "p") -> None:
    driver.send(ev.Joined(device=device, profile=profile))


def test_newcomer_is_in_the_last_wave() -> None:
    driver = Driver()
    driver.start()
    join(driver)
    mine = driver.rollout.assignments["new"]
    assert (mine.wave, mine.phase, mine.late) == (1, P.QUEUED, False)
    join(driver)  # once more changes nothing
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.tick(11)
    assert driver.phase("new") is P.OFFERED


def test_newcomer_after_the_offer_is_offered_at_once_and_not_waited_for() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100, soak_s=5)])
    driver.start()
    join(driver)
    assert driver.phase("new") is P.OFFERED
    driver.report(P.HEALTHY, "d0")
    driver.tick(6)
    assert driver.rollout.state is RolloutState.COMPLETED
    driver.report(P.HEALTHY, "new")
    assert driver.phase("new") is P.HEALTHY


def test_failure_of_a_newcomer_counts() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100, soak_s=5)])
    driver.start()
    for name in ("n0", "n1", "n2"):
        join(driver, name)
    driver.report(P.FAILED, "n0", "n1", "n2")
    assert driver.rollout.state is RolloutState.HALTED


@pytest.mark.parametrize(
    "waves",
    [[WavePlan(count=2)], [WavePlan(percent=100), WavePlan(percent=50)]],
    ids=["a number", "a share"],
)
def test_nobody_joins_a_wave_of_a_fixed_size(waves) -> None:
    driver = Driver(waves=waves)
    driver.start()
    join(driver)
    assert "new" not in driver.rollout.assignments


def test_nobody_joins_without_a_release_or_after_the_end() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100, soak_s=0)])
    driver.start()
    join(driver, profile="other")
    driver.report(P.HEALTHY, "d0")
    driver.tick(1)
    assert driver.rollout.state is RolloutState.COMPLETED
    join(driver)
    assert set(driver.rollout.assignments) == {"d0"}


def test_newcomer_outside_the_window_waits_for_it() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100, soak_s=9e4)], windows=("00:00-01:00",))
    driver.start()
    driver.now = 4000.0
    driver.report(P.DOWNLOADING, "d0")
    join(driver)
    assert driver.phase("new") is P.QUEUED
    driver.report(P.HEALTHY, "d0")  # what is under way finishes
    assert driver.waves == [WaveState.SOAKING]
    driver.now = 86400.0
    driver.tick()
    assert driver.phase("new") is P.OFFERED


def completed_without(silent: str) -> Driver:
    driver = Driver(devices=3, waves=[WavePlan(percent=100, soak_s=0)], phase_timeout_s=100)
    driver.start()
    driver.report(P.HEALTHY, *(d for d in driver.rollout.assignments if d != silent))
    driver.tick(61)
    assert driver.rollout.state is RolloutState.COMPLETED
    assert driver.phase(silent) is P.UNREACHABLE
    return driver


def test_device_that_returns_after_the_end_gets_the_version_and_is_watched() -> None:
    driver = completed_without("d1")
    driver.tick(100_000)
    driver.report(P.DOWNLOADING, "d1")
    assert driver.phase("d1") is P.DOWNLOADING
    driver.tick(101)
    assert driver.phase("d1") is P.TIMED_OUT
    assert driver.rollout.assignments["d1"].failed_in is P.DOWNLOADING


def test_late_returners_that_fail_beyond_the_limit_halt_a_completed_rollout() -> None:
    driver = Driver(devices=6, waves=[WavePlan(percent=100, soak_s=0)], on_failure="rollback")
    driver.start()
    driver.report(P.HEALTHY, "d0", "d1")
    driver.tick(61)
    assert driver.rollout.state is RolloutState.COMPLETED
    driver.effects.clear()
    driver.report(P.LOCAL_ROLLBACK, "d2", "d3", "d4")
    assert driver.rollout.state is RolloutState.HALTED  # not rolled back: a person decides that
    withdrawn = {e.device for e in driver.effects if isinstance(e, ev.Withdraw)}
    assert withdrawn == {"d2", "d3", "d4", "d5"}


def test_device_that_returns_after_a_roll_back_reads_it_from_its_twin() -> None:
    driver = completed_without("d1")
    driver.send(ev.Rollback(actor="ana"))
    again = OLD.model_copy(update={"counter": 3})
    driver.send(ev.RollbackReady(releases={OLD.target: again}))
    assert driver.rollout.assignments["d1"].release == again
    driver.report(P.HEALTHY, "d0", "d2")
    driver.tick(61)
    assert driver.rollout.state is RolloutState.ROLLED_BACK
    assert driver.rollout.reason == "2 of 3 devices are back"
    driver.report(P.HEALTHY, "d1")
    assert driver.phase("d1") is P.HEALTHY


def test_device_that_is_assigned_again_after_the_end_is_watched_again() -> None:
    driver = completed_without("d1")
    driver.report(P.FAILED, "d1")
    raised = NEW.model_copy(update={"counter": 7})
    driver.send(ev.Assigned(device="d1", generation=99, release=raised))
    mine = driver.rollout.assignments["d1"]
    assert (mine.phase, mine.late, mine.release) == (P.OFFERED, True, raised)
    driver.report(P.HEALTHY, "d1")
    assert driver.phase("d1") is P.HEALTHY
