"""From a filter and sizes to concrete devices in waves.

Devices are drawn by a hash of rollout and device, not by their names, so that neighbours do not
always go first together; the profiles are interleaved in proportion, so that an early wave of some
size sees all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from fleet.devices.select import DeviceRef
from fleet.rollouts.control import hold_back
from fleet.rollouts.model import Assignment, Plan, Rollout, Wave, WavePlan


class PlanError(ValueError):
    """The plan cannot be carried out as written (user)."""


def _no_queries(text: str) -> Collection[str]:
    raise PlanError(f"nothing here can look up who matches {text!r}")


def draft(
    rollout_id: str,
    plan: Plan,
    waves: Sequence[WavePlan],
    devices: Sequence[DeviceRef],
    matching: Callable[[str], Collection[str]] = _no_queries,
) -> Rollout:
    """A rollout in DRAFT with every device in its wave.

    Devices beyond the last wave take no part.  Where the last wave takes whoever is left (100 %),
    or whoever matches its query, devices that come later join it.

    Args:
        matching: ids of the devices that a wave's query matches.

    Raises:
        PlanError: no device, no wave, a wave without a size, one whose query matches nobody, or
            one that is smaller than the number of responders that it must have.
    """
    if not devices:
        raise PlanError("no device matches")
    if not waves:
        raise PlanError("a rollout needs at least one wave")
    left = _order(rollout_id, devices)
    planned: list[Wave] = []
    assignments: dict[str, Assignment] = {}
    for wave in waves:
        if not left:
            break
        chosen = _members(wave, left, matching)
        size = len(chosen)
        if not size:
            raise PlanError(
                f"wave {len(planned) + 1} ({wave.what}) matches none of the {len(left)} devices "
                "that are left"
            )
        if size < plan.gate.min_responders:
            raise PlanError(
                f"wave {len(planned) + 1} has {size} device{'s' * (size != 1)}, fewer than the "
                f"{plan.gate.min_responders} responders that it must have"
            )
        for device in chosen:
            assignments[device.id] = Assignment(
                device=device.id,
                profile=device.profile,
                wave=len(planned),
                release=plan.releases[device.profile],
            )
        left = [device for device in left if device.id not in assignments]
        planned.append(Wave(index=len(planned), soak_s=wave.soak_s, what=wave.what))
    if plan.gate.control_percent and not left:
        planned, assignments = hold_back(planned, assignments, plan.gate.control_percent)
    last = waves[-1]
    plan = plan.model_copy(
        update={"takes_newcomers": last.percent == 100 or last.query is not None}
    )
    return Rollout(id=rollout_id, plan=plan, waves=tuple(planned), assignments=assignments)


def _members(
    wave: WavePlan, left: Sequence[DeviceRef], matching: Callable[[str], Collection[str]]
) -> list[DeviceRef]:
    if sum(size is not None for size in (wave.count, wave.percent, wave.query)) != 1:
        raise PlanError("a wave has a count, a percentage or a query")
    if wave.query is not None:
        meant = matching(wave.query)
        return [device for device in left if device.id in meant]
    return list(left[: _size(wave, len(left))])


def _size(wave: WavePlan, left: int) -> int:
    if wave.count is not None:
        return min(wave.count, left)
    return min(left, max(1, math.ceil(left * (wave.percent or 0.0) / 100)))


def _order(rollout_id: str, devices: Sequence[DeviceRef]) -> list[DeviceRef]:
    by_profile: dict[str, list[DeviceRef]] = defaultdict(list)
    for device in sorted(devices, key=lambda each: _draw(rollout_id, each.id)):
        by_profile[device.profile].append(device)
    placed = [
        ((rank + 0.5) / len(members), profile, device)
        for profile, members in by_profile.items()
        for rank, device in enumerate(members)
    ]
    return [device for *_, device in sorted(placed, key=lambda each: each[:2])]


def _draw(rollout_id: str, device: str) -> bytes:
    return hashlib.sha256(f"{rollout_id}/{device}".encode()).digest()
