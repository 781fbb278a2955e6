"""When each wave of a plan would start and end, if devices take as long as they took before.  Pure.

Time that people take (approvals, pauses) is not foreseen, nor are devices that cannot be reached.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.rollouts import windows
from fleet.rollouts.model import Plan, Wave


def forecast(
    plan: Plan, waves: Sequence[Wave], update_s: float, now: float
) -> list[tuple[float, float]]:
    """Start and end of each wave, seconds since the epoch.

    Args:
        update_s: seconds from the offer to a device until it is healthy.
    """
    times: list[tuple[float, float]] = []
    at = max(now, plan.start_at)
    for wave in waves:
        start = windows.next_opening(plan.windows, plan.time_zone, at) or at
        at = start + update_s + wave.soak_s
        times.append((start, at))
    return times
