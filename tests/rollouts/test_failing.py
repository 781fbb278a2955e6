"""What a failed gate does besides halting."""

from __future__ import annotations

from fleet.rollouts import events as ev
from fleet.rollouts.model import RolloutState, WaveState

from .test_machine import AGAIN, OLD, Driver, P


def test_failed_gate_rolls_back_by_itself_when_the_plan_says_so() -> None:
    driver = Driver(on_failure="rollback")
    driver.start()
    first = driver.wave(0)
    driver.report(P.HEALTHY, *first)
    driver.tick(11)
    second = driver.wave(1)
    driver.report(P.HEALTHY, second[0])
    driver.report(P.LOCAL_ROLLBACK, *second[1:])
    assert driver.waves == [WaveState.PASSED, WaveState.FAILED]
    assert driver.rollout.state is RolloutState.ROLLING_BACK
    states = [e.after for e in driver.effects if isinstance(e, ev.StateChanged)]
    assert states[-2:] == [RolloutState.HALTED, RolloutState.ROLLING_BACK]
    driver.send(ev.RollbackReady(releases={OLD.target: AGAIN}))
    driver.report(P.HEALTHY, *first, *second)
    assert driver.rollout.state is RolloutState.ROLLED_BACK
    assert driver.rollout.reason == "4 of 4 devices are back"


def test_person_who_halts_is_not_overruled_by_the_plan() -> None:
    driver = Driver(on_failure="rollback")
    driver.start()
    driver.send(ev.Halt(actor="ana"))
    assert driver.rollout.state is RolloutState.HALTED


def test_roll_back_says_how_many_had_nothing_to_go_back_to() -> None:
    driver = Driver(devices=2)
    driver.start()
    first = driver.wave(0)
    mine = driver.rollout.assignments[first[0]].model_copy(update={"previous": None})
    driver.rollout = driver.rollout.model_copy(
        update={"assignments": {**driver.rollout.assignments, first[0]: mine}}
    )
    driver.report(P.HEALTHY, *first)
    driver.tick(11)
    driver.report(P.HEALTHY, *driver.wave(1))
    driver.send(ev.Rollback(actor="ana"))
    driver.send(ev.RollbackReady(releases={OLD.target: AGAIN}))
    driver.report(P.HEALTHY, *driver.wave(1))
    assert driver.rollout.reason == (
        "1 of 1 devices are back; 1 with no earlier version keep this one"
    )


def test_phase_in_which_a_device_failed_is_kept() -> None:
    driver = Driver()
    driver.start()
    (first,) = driver.wave(0)
    driver.report(P.STAGED, first)
    driver.report(P.FAILED, first, reason="selftest_failed")
    mine = driver.rollout.assignments[first]
    assert (mine.failed_in, mine.reason) == (P.STAGED, "selftest_failed")
