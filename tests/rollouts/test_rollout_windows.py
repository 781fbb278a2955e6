"""Windows of a rollout by the clock of a time zone."""

from __future__ import annotations

from datetime import datetime

import pytest
from pydantic import ValidationError

from fleet.rollouts import windows
from fleet.rollouts.forecast import forecast
from fleet.rollouts.model import Plan, Wave


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2027-03-01T21:59:59+09:00", False),  # a Monday
        ("2027-03-01T22:00:00+09:00", True),
        ("2027-03-02T04:59:59+09:00", True),
        ("2027-03-02T05:00:00+09:00", False),
        ("2027-03-06T23:00:00+09:00", False),  # a Saturday
    ],
)
def test_window_is_by_the_clock_of_its_zone(moment: str, expected: bool) -> None:
    assert windows.is_open(["Mon-Fri 22:00-05:00"], "Asia/Seoul", at(moment)) is expected


def test_no_window_is_always_open() -> None:
    assert windows.is_open([], "UTC", 0.0)
    assert windows.next_opening([], "UTC", 0.0) is None


def test_next_opening_follows_a_clock_that_is_put_forward() -> None:
    # Oslo skips 02:00-03:00 on 2027-03-28
    opens = windows.next_opening(["03:30-04:00"], "Europe/Oslo", at("2027-03-28T01:00:00+01:00"))
    assert opens == at("2027-03-28T03:30:00+02:00")


def test_hour_that_a_clock_leaves_out_opens_on_the_next_day() -> None:
    opens = windows.next_opening(["02:00-02:30"], "Europe/Oslo", at("2027-03-28T01:00:00+01:00"))
    assert opens == at("2027-03-29T02:00:00+02:00")


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("windows", ["nightly"], "Mon-Fri 02:00-04:30"),
        ("windows", ["25:00-26:00"], "00:00 to 24:00"),
        ("time_zone", "Mars/Olympus", "no time zone 'Mars/Olympus'"),
        ("time_zone", "../etc/passwd", "no time zone"),
    ],
)
def test_plan_with_a_wrong_window_or_zone_is_refused(field: str, value: object, part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        Plan.model_validate({"model": "m", "version": 1, "releases": {}, field: value})


def test_forecast_waits_for_start_and_windows() -> None:
    plan = Plan(
        model="m", version=1, releases={}, start_at=at("2027-03-01T12:00+00:00"),
        windows=("22:00-23:00",),
    )  # fmt: skip
    waves = [Wave(index=0, soak_s=600), Wave(index=1, soak_s=3600), Wave(index=2, soak_s=0)]
    times = forecast(plan, waves, 60.0, at("2027-03-01T08:00+00:00"))
    assert times == [
        (at("2027-03-01T22:00+00:00"), at("2027-03-01T22:11+00:00")),
        (at("2027-03-01T22:11+00:00"), at("2027-03-01T23:12+00:00")),
        (at("2027-03-02T22:00+00:00"), at("2027-03-02T22:01+00:00")),
    ]
