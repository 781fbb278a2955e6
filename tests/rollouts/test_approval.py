"""A second person lets a rollout start, and where that is asked for each of its waves."""

from __future__ import annotations

import pytest

from fleet.rollouts import events as ev
from fleet.rollouts.model import RolloutState, WaveState

from .test_machine import Driver, P


def test_who_created_a_rollout_cannot_approve_it() -> None:
    driver = Driver(needs_approval=True, created_by="ana")
    driver.start()
    before = driver.rollout
    driver.send(ev.Approved(actor="ana"))
    assert driver.rollout == before
    driver.send(ev.Approved(actor="bo"))
    assert driver.rollout.state is RolloutState.RUNNING
    assert driver.rollout.waves[0].approved_by == "bo"
    decision = driver.of_kind(ev.GateDecided)[0]
    assert (decision.gate, decision.reason) == ("approval", "approved by bo")  # type: ignore[union-attr]


def test_each_wave_passes_and_waits_for_its_own_approval() -> None:
    driver = Driver(approve_each_wave=True, created_by="ana")
    driver.start()
    assert driver.rollout.state is RolloutState.PENDING_APPROVAL
    driver.send(ev.Approved(actor="bo"))
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.tick(11)
    assert driver.waves == [WaveState.PASSED, WaveState.PENDING]
    assert driver.rollout.state is RolloutState.PENDING_APPROVAL
    assert driver.rollout.reason == "wave 2 waits for a second person"
    driver.send(ev.Resume(actor="ana"))
    driver.send(ev.Approved(actor="ana"))
    assert driver.rollout.state is RolloutState.PENDING_APPROVAL
    driver.send(ev.Approved(actor="bo"))
    assert driver.rollout.state is RolloutState.RUNNING
    assert driver.waves[1] is WaveState.OFFERING


def test_passed_wave_that_fails_while_the_next_awaits_approval_halts() -> None:
    driver = Driver(approve_each_wave=True)
    driver.start()
    driver.send(ev.Approved(actor="bo"))
    first = driver.wave(0)
    driver.report(P.HEALTHY, *first)
    driver.tick(11)
    driver.report(P.LOCAL_ROLLBACK, *first)
    assert driver.rollout.state is RolloutState.HALTED


@pytest.mark.parametrize("verb", [ev.Cancel, ev.Halt])
def test_rollout_that_awaits_approval_can_be_given_up(verb) -> None:
    driver = Driver(needs_approval=True)
    driver.start()
    driver.send(verb(actor="ana"))
    assert driver.rollout.state in (RolloutState.CANCELLED, RolloutState.HALTED)
    driver.send(ev.Approved(actor="bo"))
    assert not driver.of_kind(ev.Assign)
