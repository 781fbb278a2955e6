"""Starts of each device's agent, by what they say; and whether two of them run at the same time.

An agent draws a new `boot` at each start and names it in every birth.  After an honest restart the
old boot is never heard of again: its process ended before the new one began.  Two machines with one
device's key take turns instead, for the broker throws each off when the other connects.  So an old
boot that says something new, after a newer one spoke, is a second machine.

Rules:
    * What is merely repeated, as a broker does after a lost connection, is nothing new: a boot
      speaks anew when its time is later than that of its own last word.
    * Once is chance, `RETURNS` times is an alarm.
    * Kept in memory, for each consumer sees all births in their order; copies that go on are found
      again after a restart.

A thief who never connects while the device is there, or copies its memory too, is not seen here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

RETURNS: Final = 2
"""Times that an earlier start came back before it counts."""
_KEPT: Final = 8
"""Starts remembered a device."""


@dataclass(slots=True)
class _Device:
    spoke_at: dict[str, float] = field(default_factory=dict)
    """Time in the last word of each boot; who spoke last is at the end."""
    returns: int = 0


class Starts:
    """See the module.  For one thread."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}

    def saw(self, device: str, boot: str, at: float) -> tuple[str, str] | None:
        """A birth came.

        Args:
            at: the time in it, by the device's clock.

        Returns:
            Two starts that certainly run at the same time, the one that spoke before first; None
            as long as all is well.
        """
        known = self._devices.setdefault(device, _Device())
        before = next(reversed(known.spoke_at), boot)
        last = known.spoke_at.get(boot)
        if last is not None and not at > last:
            return None
        returned = last is not None and before != boot
        known.spoke_at.pop(boot, None)
        known.spoke_at[boot] = at
        if len(known.spoke_at) > _KEPT:
            del known.spoke_at[next(iter(known.spoke_at))]
        known.returns += returned
        return (before, boot) if returned and known.returns >= RETURNS else None
