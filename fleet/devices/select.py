"""Filters over devices, and what a filter matches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """What a filter looks at."""

    id: str
    profile: str
    labels: Mapping[str, str] = field(default_factory=dict)
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Devices of any of `profiles` (empty: of any) that carry all of `labels`.

    A revoked device matches nothing.
    """

    profiles: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, device: DeviceRef) -> bool:
        return (
            not device.revoked
            and (not self.profiles or device.profile in self.profiles)
            and all(device.labels.get(key) == value for key, value in self.labels.items())
        )

    def select(self, devices: Iterable[DeviceRef]) -> list[DeviceRef]:
        """Those that match, in the order given."""
        return [device for device in devices if self.matches(device)]
