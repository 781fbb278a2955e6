"""When a rollout may offer: windows of the week by the clock of a time zone.  Pure.

The text of a window is that of `edge_agent.wire.windows`, e.g. "Mon-Fri 22:00-05:00".  Devices may
have maintenance windows of their own, by their own clocks; these here are the rollout's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from edge_agent.wire.windows import Window
from edge_agent.wire.windows import is_open as _is_open
from edge_agent.wire.windows import parse as _parse

MAX_WINDOWS: Final = 50

_SEARCH_MINUTES: Final = 15 * 24 * 60


@lru_cache(maxsize=256)
def parse(text: str) -> Window:
    """A window from its text.

    Raises:
        ValueError: one line, what is wrong with it.
    """
    return _parse(text)


@lru_cache(maxsize=256)
def zone(name: str) -> tzinfo:
    """A time zone by its IANA name, e.g. "Asia/Seoul".

    Raises:
        ValueError: there is none of this name.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f'no time zone {name!r}; write it as in "Europe/Oslo" or UTC') from error


def is_open(texts: Sequence[str], time_zone: str, now: float) -> bool:
    """Whether `now` (seconds since the epoch) lies in one of the windows; none means always."""
    if not texts:
        return True
    return _is_open([parse(text) for text in texts], datetime.fromtimestamp(now, zone(time_zone)))


def next_opening(texts: Sequence[str], time_zone: str, now: float) -> float | None:
    """Seconds since the epoch of the next opening, to the minute; None when it is open now.

    Counted in real minutes, so that a clock that is put forward or back is walked through; an hour
    that a clock leaves out opens nothing.
    """
    if is_open(texts, time_zone, now):
        return None
    windows, local = [parse(text) for text in texts], zone(time_zone)
    minute = datetime.fromtimestamp(now - now % 60, UTC)
    for _ in range(_SEARCH_MINUTES):
        minute += timedelta(minutes=1)
        if _is_open(windows, minute.astimezone(local)):
            return minute.timestamp()
    return None  # the only hour of it is one that the clock leaves out
