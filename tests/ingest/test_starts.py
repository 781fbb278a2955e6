"""Attack 32: which births tell of a cloned identity, and which of honest restarts."""

from __future__ import annotations

import pytest

from cloud.ingest.starts import Starts

Births = list[tuple[str, float]]


def alarms(births: Births) -> int:
    starts = Starts()
    return sum(starts.saw("cam-1", boot, at) is not None for boot, at in births)


@pytest.mark.parametrize(
    "births",
    [
        [("a", 1.0), ("a", 2.0), ("a", 3.0)],
        [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)],
        [("a", 1.0), ("b", 2.0)] * 5,
        [("a", 1.0), ("a", 2.0), ("b", 3.0), ("a", 1.0), ("a", 2.0), ("b", 3.0), ("b", 4.0)] * 3,
        [(f"boot-{number}", float(number)) for number in range(100)],
        [("a", 1e9), ("b", 5.0), ("c", 1e9)],
        [("a", 1.0), ("b", 2.0), ("a", 3.0), ("b", 2.0)],
    ],
    ids=[
        "one start", "restarts", "repeated by the broker", "repeated in part", "a crash loop",
        "a clock that jumps", "one turn alone",
    ],
)  # fmt: skip
def test_attack_32_honest_restarts_raise_no_alarm(births: Births) -> None:
    assert alarms(births) == 0


@pytest.mark.parametrize("behind_s", [0.0, 1e9])
def test_attack_32_two_starts_that_take_turns_do_whatever_their_clocks_say(behind_s: float) -> None:
    births = [(boot, at - behind_s * (boot == "b")) for at in range(2) for boot in "ab"]
    assert alarms([(boot, float(at)) for boot, at in births]) == 1


def test_attack_32_devices_are_told_apart() -> None:
    starts = Starts()
    for at in range(5):
        for device, boot in (("cam-1", "a"), ("cam-2", "b")):
            assert starts.saw(device, boot, float(at)) is None


def test_attack_32_the_alarm_names_both_starts() -> None:
    starts = Starts()
    seen = [starts.saw("cam-1", boot, at) for boot, at in [("a", 1), ("b", 1), ("a", 2), ("b", 2)]]
    assert seen == [None, None, None, ("a", "b")]
