"""Maintenance windows: how they are written, when they are open, when they open next."""

from __future__ import annotations

from datetime import datetime

import pytest

from edge_agent.wire import windows

# 2024-01-01 was a Monday.


def at(text: str) -> datetime:
    day, time = text.split()
    return datetime.fromisoformat(f"2024-01-0{windows.DAYS.index(day) + 1}T{time}")


@pytest.mark.parametrize(
    ("texts", "moment", "is_open"),
    [
        ([], "Wed 12:00", True),
        (["02:00-04:30"], "Wed 02:00", True),
        (["02:00-04:30"], "Wed 04:29", True),
        (["02:00-04:30"], "Wed 04:30", False),
        (["Mon-Fri 02:00-04:00"], "Sat 03:00", False),
        (["Mon-Fri 02:00-04:00", "Sat 01:00-02:00"], "Sat 01:30", True),
        (["Fri 22:00-04:00"], "Sat 03:59", True),
        (["Fri 22:00-04:00"], "Fri 03:59", False),
        (["Sun 22:00-04:00"], "Mon 01:00", True),
        (["Fri-Mon 10:00-11:00"], "Sun 10:30", True),
        (["Fri-Mon 10:00-11:00"], "Tue 10:30", False),
        (["sat,SUN 00:00-24:00"], "Sun 23:59", True),
        (["sat,SUN 00:00-24:00"], "Mon 00:00", False),
        (["20:00-00:00"], "Thu 23:59", True),
        (["20:00-00:00"], "Thu 00:00", False),
    ],
)
def test_open_or_not(texts: list[str], moment: str, is_open: bool) -> None:
    parsed = [windows.parse(text) for text in texts]
    assert windows.is_open(parsed, at(moment)) == is_open
    assert (windows.next_opening(parsed, at(moment)) is None) == is_open


@pytest.mark.parametrize(
    ("texts", "moment", "opens"),
    [
        (["02:00-04:00"], "Mon 12:00", "Tue 02:00"),
        (["02:00-04:00", "13:00-14:00"], "Mon 12:00", "Mon 13:00"),
        (["Wed 02:00-04:00"], "Wed 01:59", "Wed 02:00"),
        (["Sun 22:00-04:00"], "Mon 04:00", "Sun 22:00"),
    ],
)
def test_next_opening(texts: list[str], moment: str, opens: str) -> None:
    assert windows.next_opening([windows.parse(text) for text in texts], at(moment)) == at(opens)


def test_a_window_on_the_same_weekday_opens_a_week_later() -> None:
    only = [windows.parse("Wed 02:00-04:00")]
    assert windows.next_opening(only, at("Wed 04:00")) == datetime.fromisoformat("2024-01-10T02:00")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no window"),
        ("2:00-4:00", "is no window"),
        ("Mon 02:00-04:00 UTC", "is no window"),
        ("25:00-26:00", "00:00 to 24:00"),
        ("02:60-04:00", "00:00 to 24:00"),
        ("24:00-24:00", "00:00 to 24:00"),
        ("02:00-02:00", "is empty"),
        ("Mo 02:00-04:00", "days are Mon"),
        ("Mon- 02:00-04:00", "days are Mon"),
        ("Mon,,Tue 02:00-04:00", "days are Mon"),
    ],
)
def test_what_is_no_window_is_told_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        windows.parse(text)
    assert "\n" not in str(raised.value)
