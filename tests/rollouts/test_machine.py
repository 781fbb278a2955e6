from __future__ import annotations

from collections.abc import Sequence

import pytest

from fleet.devices.select import DeviceRef
from fleet.rollouts import events as ev
from fleet.rollouts.machine import VERBS, run, step
from fleet.rollouts.model import (
    AssignmentPhase,
    Comparison,
    DeviceFigures,
    GateSpec,
    Plan,
    Previous,
    Release,
    Rollout,
    RolloutState,
    Serving,
    WaveMetrics,
    WavePlan,
    WaveState,
)
from fleet.rollouts.plan import draft

OLD = Release(target="models/digits/p/1.bundle", version=1, counter=1)
NEW = Release(target="models/digits/p/2.bundle", version=2, counter=2)
AGAIN = Release(target="models/digits/p/3.bundle", version=1, counter=3)
P = AssignmentPhase


class Driver:
    """Carries out what a machine asks for, without a database."""

    def __init__(
        self,
        devices: int = 4,
        waves: Sequence[WavePlan] = (WavePlan(count=1, soak_s=10), WavePlan(percent=100)),
        **plan: object,
    ) -> None:
        settings = Plan.model_validate(
            {"model": "digits", "version": 2, "releases": {"p": NEW}, **plan}
        )
        refs = [DeviceRef(f"d{index}", "p") for index in range(devices)]
        self.rollout: Rollout = draft("digits-2-abc", settings, waves, refs)
        self.now = 1000.0
        self.generation = 0
        self.effects: list[ev.Effect] = []

    def send(self, *events: ev.Event) -> None:
        queue: list[ev.Event] = list(events)
        while queue:
            self.rollout, effects = run(self.rollout, queue, self.now)
            self.effects += effects
            queue = []
            for effect in effects:
                if isinstance(effect, ev.Assign):
                    self.generation += 1
                    previous = Previous(release=OLD, rollout="digits-1-old")
                    queue.append(
                        ev.Assigned(
                            device=effect.device, generation=self.generation, previous=previous
                        )
                    )

    def start(self) -> None:
        self.send(ev.Started())

    def tick(self, seconds: float = 0.0, comparison: Comparison | None = None) -> None:
        self.now += seconds
        self.send(ev.Tick(comparison=comparison))

    def report(self, phase: AssignmentPhase, *devices: str, reason: str = "") -> None:
        self.send(
            *(
                ev.DeviceReported(
                    device=device,
                    generation=self.rollout.assignments[device].generation,
                    phase=phase,
                    reason=reason,
                )
                for device in devices
            )
        )

    def wave(self, index: int) -> list[str]:
        return [mine.device for mine in self.rollout.of_wave(index)]

    def phase(self, device: str) -> AssignmentPhase:
        return self.rollout.assignments[device].phase

    def of_kind(self, kind: type[ev.Effect]) -> list[ev.Effect]:  # type: ignore[valid-type]
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def waves(self) -> list[WaveState]:
        return [wave.state for wave in self.rollout.waves]


def test_good_version_goes_wave_by_wave_to_the_end() -> None:
    driver = Driver()
    driver.start()
    assert driver.rollout.state is RolloutState.RUNNING
    assert driver.waves == [WaveState.OFFERING, WaveState.PENDING]
    first = driver.wave(0)
    driver.report(P.DOWNLOADING, *first)
    driver.report(P.HEALTHY, *first)
    assert driver.waves[0] is WaveState.SOAKING
    driver.tick(9.9)
    assert driver.waves[0] is WaveState.SOAKING
    driver.tick(0.2)
    assert driver.waves == [WaveState.PASSED, WaveState.OFFERING]
    driver.report(P.HEALTHY, *driver.wave(1))
    driver.tick(31)
    assert driver.rollout.state is RolloutState.COMPLETED
    assert driver.rollout.reason == "4 healthy"


def test_failed_first_wave_halts_and_offers_nothing_more() -> None:
    driver = Driver()
    driver.start()
    (first,) = driver.wave(0)
    driver.report(P.LOCAL_ROLLBACK, first, reason="unhealthy")
    assert driver.rollout.state is RolloutState.HALTED
    assert driver.waves == [WaveState.FAILED, WaveState.PENDING]
    decision = driver.of_kind(ev.GateDecided)[0]
    assert isinstance(decision, ev.GateDecided)
    assert decision.verdict == "fail"
    assert decision.evidence["failures"] == 1
    assert decision.evidence["lower_bound"] == pytest.approx(0.27, abs=0.01)
    driver.tick(10_000)
    assert len(driver.of_kind(ev.Assign)) == 1
    assert {driver.phase(device) for device in driver.wave(1)} == {P.CANCELLED}


def test_device_that_fails_after_its_wave_passed_halts_the_rollout() -> None:
    driver = Driver()
    driver.start()
    first = driver.wave(0)
    driver.report(P.HEALTHY, *first)
    driver.tick(11)
    assert driver.waves == [WaveState.PASSED, WaveState.OFFERING]
    driver.report(P.LOCAL_ROLLBACK, *first)
    assert driver.waves == [WaveState.FAILED, WaveState.OFFERING]
    assert driver.rollout.state is RolloutState.HALTED


def test_halt_takes_back_what_no_device_has_begun_to_activate() -> None:
    driver = Driver(waves=[WavePlan(percent=100)])
    driver.start()
    offered, downloading, activating, healthy = driver.wave(0)
    driver.report(P.DOWNLOADING, downloading)
    driver.report(P.ACTIVATING, activating)
    driver.report(P.HEALTHY, healthy)
    driver.send(ev.Halt(actor="ana", reason="complaints"))
    withdrawn = {e.device for e in driver.effects if isinstance(e, ev.Withdraw)}
    assert withdrawn == {offered, downloading}
    assert all(
        e.previous is not None and e.previous.release == OLD
        for e in driver.effects
        if isinstance(e, ev.Withdraw)
    )
    assert driver.rollout.reason == "halted by ana: complaints"
    driver.report(P.HEALTHY, activating)
    assert driver.phase(activating) is P.HEALTHY
    driver.send(ev.Resume(actor="ana"))
    assert driver.rollout.state is RolloutState.HALTED


def test_halt_takes_the_version_from_devices_that_failed_with_it_before_and_after() -> None:
    driver = Driver(devices=12, waves=[WavePlan(percent=100)], gate=GateSpec(max_failure_rate=0.5))
    driver.start()
    early, late, *others = driver.wave(0)
    driver.report(P.LOCAL_ROLLBACK, early)
    driver.report(P.HEALTHY, *others)
    driver.report(P.PROBATION, late)
    driver.send(ev.Halt(actor="ana"))
    withdrawn = [e.device for e in driver.effects if isinstance(e, ev.Withdraw)]
    assert withdrawn == [early]
    driver.report(P.LOCAL_ROLLBACK, late)
    withdrawn = [e.device for e in driver.effects if isinstance(e, ev.Withdraw)]
    assert withdrawn == [early, late]
    assert (driver.phase(early), driver.phase(late)) == (P.LOCAL_ROLLBACK, P.LOCAL_ROLLBACK)


def test_assignment_that_lands_after_a_halt_is_taken_back() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100)])
    driver.rollout, _ = step(driver.rollout, ev.Started(), driver.now)  # the effect waits
    driver.rollout, _ = step(driver.rollout, ev.Halt(actor="ana"), driver.now)
    driver.rollout, effects = step(
        driver.rollout, ev.Assigned(device="d0", generation=7), driver.now
    )
    assert [type(effect) for effect in effects] == [ev.Withdraw]
    assert effects[0].generation == 7  # type: ignore[union-attr]


def test_report_of_another_generation_changes_nothing() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100)])
    driver.start()
    before = driver.rollout
    for generation in (0, driver.generation - 1, driver.generation + 1):
        driver.send(ev.DeviceReported(device="d0", generation=generation, phase=P.FAILED))
    assert driver.rollout == before


def test_reports_that_come_again_or_late_do_not_move_a_device_back() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100)])
    driver.start()
    driver.report(P.STAGED, "d0")
    driver.report(P.DOWNLOADING, "d0")
    assert driver.phase("d0") is P.STAGED
    driver.report(P.FAILED, "d0")
    driver.report(P.HEALTHY, "d0")
    assert driver.phase("d0") is P.FAILED


def test_device_that_confirms_nothing_is_unreachable_and_in_no_denominator() -> None:
    driver = Driver(devices=3, waves=[WavePlan(percent=100, soak_s=0)], reach_timeout_s=60)
    driver.start()
    silent, *others = driver.wave(0)
    driver.report(P.HEALTHY, *others)
    driver.tick(61)
    assert driver.phase(silent) is P.UNREACHABLE
    assert driver.rollout.state is RolloutState.COMPLETED
    evidence = driver.of_kind(ev.GateDecided)[0].evidence  # type: ignore[union-attr]
    assert (evidence["responders"], evidence["unreachable"]) == (2, 1)
    driver.report(P.DOWNLOADING, silent)
    driver.report(P.HEALTHY, silent)
    assert driver.phase(silent) is P.HEALTHY


def test_phase_timer_starts_at_confirmed_delivery() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100)], phase_timeout_s=100)
    driver.start()
    driver.tick(59)
    driver.send(ev.Delivered(device="d0", generation=driver.generation))
    driver.tick(99)
    assert driver.phase("d0") is P.OFFERED
    driver.tick(2)
    assert driver.phase("d0") is P.TIMED_OUT
    assert driver.rollout.assignments["d0"].reason == "no_progress_offered"
    assert driver.rollout.state is RolloutState.HALTED


def test_device_that_goes_offline_while_it_downloads_is_unreachable_not_failed() -> None:
    driver = Driver(devices=2, waves=[WavePlan(percent=100)], phase_timeout_s=100)
    driver.start()
    gone, activating = driver.wave(0)
    driver.report(P.DOWNLOADING, gone)
    driver.report(P.ACTIVATING, activating)
    driver.send(
        ev.Connectivity(device=gone, online=False), ev.Connectivity(device=activating, online=False)
    )
    driver.tick(101)
    assert driver.phase(gone) is P.CANCELLED  # was UNREACHABLE when the other's failure halted
    assert driver.phase(activating) is P.TIMED_OUT


def test_returning_device_goes_on() -> None:
    driver = Driver(devices=2, waves=[WavePlan(percent=100)], phase_timeout_s=100)
    driver.start()
    gone, other = driver.wave(0)
    driver.report(P.HEALTHY, other)
    driver.report(P.DOWNLOADING, gone)
    driver.send(ev.Connectivity(device=gone, online=False))
    driver.tick(101)
    assert driver.phase(gone) is P.UNREACHABLE
    driver.send(ev.Connectivity(device=gone, online=True))
    assert driver.phase(gone) is P.OFFERED


def test_too_few_responders_need_a_person() -> None:
    driver = Driver(
        devices=4,
        waves=[WavePlan(count=2, soak_s=0), WavePlan(percent=100, soak_s=0)],
        gate=GateSpec(min_responders=2),
    )
    driver.start()
    driver.report(P.HEALTHY, driver.wave(0)[0])
    driver.tick(61)
    assert driver.waves[0] is WaveState.INCONCLUSIVE
    assert driver.rollout.state is RolloutState.PAUSED
    assert "1 of at least 2 responders, 1 unreachable" in driver.rollout.reason
    driver.tick(10_000)
    assert driver.rollout.state is RolloutState.PAUSED
    driver.send(ev.Resume(actor="ana"))
    assert driver.waves == [WaveState.PASSED, WaveState.OFFERING]
    assert driver.rollout.waves[0].reason == "accepted by ana"
    assert driver.of_kind(ev.GateDecided)[-1].gate == "person"  # type: ignore[union-attr]


def test_pause_holds_the_next_wave_but_not_the_safety_stop() -> None:
    driver = Driver()
    driver.start()
    first = driver.wave(0)
    driver.send(ev.Pause(actor="ana"))
    driver.report(P.HEALTHY, *first)
    driver.tick(100)
    assert driver.waves == [WaveState.SOAKING, WaveState.PENDING]
    driver.report(P.LOCAL_ROLLBACK, *first)
    assert driver.rollout.state is RolloutState.HALTED


def test_pause_and_resume() -> None:
    driver = Driver()
    driver.start()
    driver.send(ev.Pause(actor="ana"))
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.tick(100)
    driver.send(ev.Resume(actor="ana"))
    driver.tick()
    assert driver.waves == [WaveState.PASSED, WaveState.OFFERING]


def test_roll_back_gives_every_device_its_old_bytes_under_a_new_counter() -> None:
    driver = Driver(devices=3, waves=[WavePlan(count=2, soak_s=0), WavePlan(percent=100)])
    driver.start()
    offered = driver.wave(0)
    driver.report(P.HEALTHY, *offered)
    driver.tick()
    driver.send(ev.Pause(actor="ana"))
    driver.send(ev.Rollback(actor="ana"))
    assert driver.rollout.state is RolloutState.ROLLING_BACK
    assert driver.effects[-1] == ev.PublishPrevious(targets=(OLD.target,))
    driver.tick(5)
    assert driver.rollout.state is RolloutState.ROLLING_BACK
    driver.send(ev.RollbackReady(releases={OLD.target: AGAIN}))
    assert all(driver.rollout.assignments[device].release == AGAIN for device in offered)
    assert driver.phase(offered[0]) is P.OFFERED
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.report(P.HEALTHY, *driver.wave(1))
    assert driver.rollout.state is RolloutState.ROLLED_BACK
    assert driver.rollout.reason == "3 of 3 devices are back"


def test_roll_back_without_anything_earlier_ends_at_once() -> None:
    driver = Driver()
    driver.rollout, _ = step(driver.rollout, ev.Started(), 0.0)
    driver.rollout, effects = step(driver.rollout, ev.Rollback(actor="ana"), 0.0)
    assert driver.rollout.state is RolloutState.ROLLED_BACK
    assert driver.rollout.reason == "no device had an earlier version"
    assert not any(isinstance(effect, ev.PublishPrevious) for effect in effects)


def test_impossible_roll_back_ends_halted() -> None:
    driver = Driver()
    driver.start()
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.send(ev.Rollback(actor="ana"))
    driver.send(ev.RollbackImpossible(reason="no blob"))
    assert driver.rollout.state is RolloutState.HALTED
    assert driver.rollout.reason == "roll-back impossible: no blob"


def test_roll_back_leaves_alone_what_a_newer_assignment_took() -> None:
    driver = Driver(devices=2, waves=[WavePlan(percent=100, soak_s=0)])
    driver.start()
    driver.report(P.HEALTHY, "d0", "d1")
    driver.tick()
    assert driver.rollout.state is RolloutState.COMPLETED
    driver.send(ev.Dropped(device="d0", phase=P.SUPERSEDED, reason="newer"))
    assert driver.phase("d0") is P.HEALTHY
    driver.effects.clear()
    driver.send(ev.Rollback(actor="ana"))
    driver.send(ev.RollbackReady(releases={OLD.target: AGAIN}))
    assert [e.device for e in driver.effects if isinstance(e, ev.Assign)] == ["d1"]


def test_wave_waits_for_a_window_and_for_its_start() -> None:
    driver = Driver(windows=("01:00-02:00",), start_at=2000.0)
    driver.start()
    assert driver.rollout.state is RolloutState.SCHEDULED
    driver.tick(1000)
    assert driver.rollout.state is RolloutState.WINDOW_WAIT
    driver.now = 3599.0
    driver.tick()
    assert driver.rollout.state is RolloutState.WINDOW_WAIT
    driver.tick(1)
    assert driver.rollout.state is RolloutState.RUNNING
    assert driver.waves[0] is WaveState.OFFERING


def test_rollout_that_needs_approval_waits_for_it() -> None:
    driver = Driver(needs_approval=True)
    driver.start()
    driver.tick(1000)
    assert driver.rollout.state is RolloutState.PENDING_APPROVAL
    driver.send(ev.Approved(actor="ana"))
    assert driver.rollout.state is RolloutState.RUNNING


def _figures(requests: int, errors: int, devices: int = 10) -> WaveMetrics:
    figures = Serving(requests=requests, errors=errors)
    return WaveMetrics(
        devices=tuple(
            DeviceFigures(device=f"c{index}", profile="p", now=figures) for index in range(devices)
        )
    )


def test_serving_figures_worse_than_the_control_group_halt() -> None:
    driver = Driver()
    driver.start()
    driver.report(P.HEALTHY, *driver.wave(0))
    bad = Comparison(
        treated=_figures(requests=1000, errors=80),
        control=_figures(requests=1000, errors=2),
    )
    driver.tick(11, bad)
    assert driver.waves[0] is WaveState.FAILED
    assert "10 of 10 devices have more errors, 0 of 10" in driver.rollout.reason


def test_resuming_after_the_soak_judges_nothing_without_figures() -> None:
    driver = Driver(devices=40, waves=[WavePlan(count=20, soak_s=10), WavePlan(percent=100)])
    driver.start()
    driver.report(P.HEALTHY, *driver.wave(0))
    driver.send(ev.Pause(actor="ana"))
    driver.now += 60
    driver.send(ev.Resume(actor="ana"))
    assert driver.waves == [WaveState.SOAKING, WaveState.PENDING]
    driver.tick(
        comparison=Comparison(
            treated=_figures(requests=1000, errors=100),
            control=_figures(requests=1000, errors=0),
        )
    )
    assert driver.rollout.state is RolloutState.HALTED


def test_every_verb_is_refused_in_every_other_state() -> None:
    events: dict[str, ev.Event] = {
        "approve": ev.Approved(actor="a"),
        "pause": ev.Pause(actor="a"),
        "resume": ev.Resume(actor="a"),
        "cancel": ev.Cancel(actor="a"),
        "halt": ev.Halt(actor="a"),
        "rollback": ev.Rollback(actor="a"),
    }
    assert set(events) == set(VERBS)
    driver = Driver(start_at=0.0)
    driver.start()
    plan = driver.rollout.plan.model_copy(update={"start_at": 1e12})
    for verb, event in events.items():
        for state in set(RolloutState) - VERBS[verb]:
            # a roll-back that waits for its release, so that nothing else moves it
            frozen = driver.rollout.model_copy(
                update={"state": state, "awaiting_release": True, "plan": plan}
            )
            assert step(frozen, event, driver.now) == (frozen, [])


def test_report_of_the_offer_alone_confirms_the_delivery() -> None:
    driver = Driver(devices=1, waves=[WavePlan(percent=100)])
    driver.start()
    driver.tick(5)
    driver.report(P.OFFERED, "d0")
    mine = driver.rollout.assignments["d0"]
    assert (mine.delivered_at, mine.since) == (driver.now, driver.now)
