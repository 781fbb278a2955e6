"""Why a rollout is where it is, in words."""

from __future__ import annotations

from fleet.rollouts import events as ev
from fleet.rollouts.explain import Explanation, explain
from fleet.rollouts.model import WavePlan

from .test_machine import Driver, P


def said(driver: Driver) -> Explanation:
    decisions = [e for e in driver.effects if isinstance(e, ev.GateDecided)]
    return explain(driver.rollout, decisions, driver.now)


def test_running_wave_names_what_it_waits_for_longest_first() -> None:
    driver = Driver(devices=3, waves=[WavePlan(percent=100)])
    driver.start()
    driver.tick(5)
    driver.report(P.DOWNLOADING, "d1")
    driver.tick(5)
    found = said(driver)
    assert found.headline == "It runs: wave 1 of 1 is offered to 3 devices."
    assert found.waits_for == "3 devices under way"
    assert [(h.device, h.for_s) for h in found.held_up][-1] == ("d1", 5)
    assert found.held_up[-1].reason == "times out in 5 min"
    assert found.held_up[0].reason == "has not confirmed; given up in 50 s"


def test_soak_names_its_end() -> None:
    driver = Driver()
    driver.start()
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.tick(4)
    assert said(driver).waits_for == "the end of the soak, in 6 s"
    assert "Next is wave 2 of 2 with 3 devices." in said(driver).lines


def test_approval_names_who_may_not() -> None:
    driver = Driver(needs_approval=True, created_by="ana")
    driver.start()
    found = said(driver)
    assert "a second person must approve the rollout; ana, who created it, may not" in (
        found.headline
    )
    assert found.waits_for == "the approval of a second person"


def test_window_names_its_opening() -> None:
    driver = Driver(windows=("22:00-23:00",))
    driver.start()
    assert said(driver).waits_for == "the window that opens at 1970-01-01 22:00 UTC, in 21.7 h"


def test_halt_says_which_gate_and_what_failed() -> None:
    driver = Driver()
    driver.start()
    driver.report(P.STAGED, *driver.wave(0))
    driver.report(P.FAILED, *driver.wave(0), reason="selftest_failed")
    found = said(driver)
    assert found.headline.startswith("It was halted: wave 1: 1 of 1 responders failed")
    assert "1 device failed: selftest_failed while staged." in found.lines
    assert found.waits_for == ""


def test_passed_wave_shows_its_gates_in_words_and_the_unreachable() -> None:
    driver = Driver(devices=3, waves=[WavePlan(count=2, soak_s=0), WavePlan(percent=100)])
    driver.start()
    driver.report(P.HEALTHY, driver.wave(0)[0])
    driver.tick(61)
    lines = said(driver).lines
    assert lines[0] == "Wave 1 (2) passed: 0 of 1 responders failed, within 10.0%."
    assert any(line.startswith("Gate errors of wave 1: could not tell: ") for line in lines)
    assert any(line.startswith("1 device could not be reached") for line in lines)
