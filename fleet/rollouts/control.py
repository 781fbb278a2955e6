"""The control group: which devices a wave is held against, and how some are kept for it.

The last wave of a fleet has no devices on the old version left to be compared with.  With
`GateSpec.control_percent` that share of each profile is taken out of the last wave and put into one
more behind it, so that every wave but that small one has a control group.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from fleet.rollouts.model import Assignment, Wave

HELD_BACK = "control group"
"""What the wave of held-back devices is made of, in words."""


def sample(
    rollout: str, devices: Mapping[str, str], profiles: Collection[str], most: int
) -> dict[str, str]:
    """At most about `most` of the devices of `profiles`, each profile in proportion.

    Which ones is drawn by a hash of rollout and device, so the same every time.

    Args:
        devices: device → profile.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for device, profile in devices.items():
        if profile in profiles:
            members[profile].append(device)
    share = min(1.0, most / max(1, sum(map(len, members.values()))))
    drawn: dict[str, str] = {}
    for profile, each in members.items():
        if share < 1:
            each.sort(key=lambda device: hashlib.sha256(f"{rollout}/{device}".encode()).digest())
        drawn |= dict.fromkeys(each[: max(1, round(len(each) * share))], profile)
    return drawn


def hold_back(
    waves: Sequence[Wave], assignments: Mapping[str, Assignment], percent: float
) -> tuple[list[Wave], dict[str, Assignment]]:
    """Move `percent` of each profile from the last wave into one of their own behind it.

    A profile keeps at least one device in the last wave.  Nothing moves where that leaves nothing.
    """
    last = waves[-1]
    total: dict[str, int] = defaultdict(int)
    members: dict[str, list[Assignment]] = defaultdict(list)
    for mine in assignments.values():
        total[mine.profile] += 1
        if mine.wave == last.index:
            members[mine.profile].append(mine)
    moved: dict[str, Assignment] = {}
    for profile, each in members.items():
        wanted = math.ceil(total[profile] * percent / 100)
        for mine in each[max(1, len(each) - wanted) :]:
            moved[mine.device] = mine.model_copy(update={"wave": last.index + 1})
    if not moved:
        return list(waves), dict(assignments)
    behind = Wave(index=last.index + 1, soak_s=last.soak_s, what=HELD_BACK)
    return [*waves, behind], {**assignments, **moved}
