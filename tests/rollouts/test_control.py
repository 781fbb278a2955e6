from __future__ import annotations

from collections import Counter

from fleet.devices.select import DeviceRef
from fleet.rollouts.control import sample
from fleet.rollouts.model import GateSpec, Plan, Release, Rollout, WavePlan
from fleet.rollouts.plan import draft


def test_large_groups_are_sampled_in_proportion_and_the_same_every_time() -> None:
    devices = {f"a{index}": "a" for index in range(3000)} | {f"b{i}": "b" for i in range(1000)}
    drawn = sample("rollout", devices, {"a", "b"}, 1000)
    assert Counter(drawn.values()) == {"a": 750, "b": 250}
    assert drawn == sample("rollout", devices, {"a", "b"}, 1000)
    assert drawn != sample("another", devices, {"a", "b"}, 1000)
    assert sample("rollout", devices, {"b"}, 5000).keys() == {f"b{i}" for i in range(1000)}


def _draft(waves: list[WavePlan], percent: float) -> Rollout:
    releases = {
        profile: Release(target=f"models/m/{profile}/2.bundle", version=2, counter=2)
        for profile in ("a", "b")
    }
    gate = GateSpec(control_percent=percent)
    devices = [DeviceRef(f"a{index}", "a") for index in range(60)]
    devices += [DeviceRef(f"b{index}", "b") for index in range(40)]
    return draft("m-2", Plan(model="m", version=2, releases=releases, gate=gate), waves, devices)


def test_share_of_each_profile_is_held_back_behind_the_last_wave() -> None:
    rollout = _draft([WavePlan(count=20), WavePlan(percent=100, soak_s=9)], 10)
    assert len(rollout.waves) == 3
    assert rollout.waves[2].soak_s == 9
    assert Counter(mine.profile for mine in rollout.of_wave(2)) == {"a": 6, "b": 4}
    assert len(rollout.of_wave(1)) == 70


def test_nothing_is_held_back_where_devices_take_no_part_anyway() -> None:
    assert len(_draft([WavePlan(count=20)], 10).waves) == 1
    assert len(_draft([WavePlan(percent=100)], 0).waves) == 1
