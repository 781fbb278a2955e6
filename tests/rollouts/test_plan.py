from __future__ import annotations

import pytest

from fleet.devices.select import DeviceRef
from fleet.rollouts.model import GateSpec, Plan, Release, WavePlan
from fleet.rollouts.plan import PlanError, draft


def plan(*profiles: str, min_responders: int = 1) -> Plan:
    return Plan(
        model="digits",
        version=1,
        releases={
            name: Release(target=f"models/digits/{name}/1.bundle", version=1, counter=1)
            for name in profiles
        },
        gate=GateSpec(min_responders=min_responders),
    )


def fleet(**sizes: int) -> list[DeviceRef]:
    return [DeviceRef(f"{name}-{i}", name) for name, size in sizes.items() for i in range(size)]


def test_waves_take_counts_and_shares_of_what_is_left() -> None:
    waves = [WavePlan(count=10), WavePlan(percent=50), WavePlan(percent=100)]
    rollout = draft("r", plan("p"), waves, fleet(p=101))
    assert [len(rollout.of_wave(index)) for index in range(3)] == [10, 46, 45]


def test_devices_beyond_the_last_wave_take_no_part() -> None:
    rollout = draft("r", plan("p"), [WavePlan(count=1)], fleet(p=5))
    assert len(rollout.assignments) == 1


def test_waves_that_find_nobody_left_are_dropped() -> None:
    rollout = draft("r", plan("p"), [WavePlan(count=9), WavePlan(percent=100)], fleet(p=3))
    assert len(rollout.waves) == 1


def test_early_wave_sees_every_profile_in_proportion() -> None:
    waves = [WavePlan(count=10), WavePlan(percent=100)]
    rollout = draft("r", plan("a", "b"), waves, fleet(a=80, b=20))
    first = [mine.profile for mine in rollout.of_wave(0)]
    assert (first.count("a"), first.count("b")) == (8, 2)


def test_another_rollout_begins_with_other_devices() -> None:
    waves = [WavePlan(count=5), WavePlan(percent=100)]
    firsts = {
        tuple(sorted(mine.device for mine in draft(name, plan("p"), waves, fleet(p=50)).of_wave(0)))
        for name in ("r1", "r2", "r3")
    }
    assert len(firsts) == 3


@pytest.mark.parametrize(
    ("waves", "devices", "min_responders", "message"),
    [
        ([WavePlan(percent=100)], 0, 1, "no device matches"),
        ([], 3, 1, "a rollout needs at least one wave"),
        ([WavePlan()], 3, 1, "a wave has a count, a percentage or a query"),
        ([WavePlan(count=1, percent=5)], 3, 1, "a wave has a count, a percentage or a query"),
        (
            [WavePlan(count=1)],
            3,
            2,
            "wave 1 has 1 device, fewer than the 2 responders that it must have",
        ),
    ],
)
def test_plan_that_cannot_be_carried_out_is_refused(
    waves: list[WavePlan], devices: int, min_responders: int, message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        draft("r", plan("p", min_responders=min_responders), waves, fleet(p=devices))
    assert str(caught.value) == message
