"""Windows of time: spans of a week in which something may happen, in local time.  Pure.

A window is written `[DAYS ]HH:MM-HH:MM`: `02:00-04:30` is every night, `Mon-Fri 22:00-04:00` starts
on a working day and ends in the morning after it, `Sat,Sun 00:00-24:00` is the weekend.  A list of
them is their union; an empty one is always open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES: Final = 24 * 60
_SHAPE: Final = re.compile(r"(?:([A-Za-z,-]+) +)?(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes after midnight of each of `days`; Monday is 0.

    Attributes:
        end: above `start`; beyond 24 hours when the window ends on the day after.
    """

    days: frozenset[int]
    start: int
    end: int

    def holds(self, at: datetime) -> bool:
        """Whether local time `at` lies in it; its end does not."""
        minute, day = at.hour * 60 + at.minute, at.weekday()
        return (day in self.days and self.start <= minute < self.end) or (
            (day - 1) % 7 in self.days and self.start <= minute + _DAY_MINUTES < self.end
        )


def parse(text: str) -> Window:
    """A window from its text.

    Raises:
        ValueError: one line, what is wrong with it.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is no window; write it as in "Mon-Fri 02:00-04:30"')
    days, *times = match.groups()
    start_hour, start_minute, end_hour, end_minute = map(int, times)
    start, end = start_hour * 60 + start_minute, end_hour * 60 + end_minute
    if start_minute > 59 or end_minute > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError(f"{text!r}: times go from 00:00 to 24:00")
    if start == end:
        raise ValueError(f"{text!r} is empty; a whole day is 00:00-24:00")
    return Window(_days(days, text), start, end if end > start else end + _DAY_MINUTES)


def is_open(windows: Sequence[Window], at: datetime) -> bool:
    """Whether local time `at` lies in one of `windows`; no window is always open."""
    return not windows or any(window.holds(at) for window in windows)


def next_opening(windows: Sequence[Window], at: datetime) -> datetime | None:
    """Local time of the next opening after `at`; None when it is open now."""
    if is_open(windows, at):
        return None
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    openings = (
        midnight + timedelta(days=ahead, minutes=window.start)
        for window in windows
        for ahead in range(8)
        if (at.weekday() + ahead) % 7 in window.days
    )
    return min(opening for opening in openings if opening > at)


def _days(text: str | None, window: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            start, end = DAYS.index(first.title()), DAYS.index((last if dash else first).title())
        except ValueError:
            raise ValueError(f"{window!r}: days are {', '.join(DAYS)}, not {part!r}") from None
        days |= {(start + step) % 7 for step in range((end - start) % 7 + 1)}
    return frozenset(days)
