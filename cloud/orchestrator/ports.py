"""What the orchestrator needs of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cloud.signing import DirectorTarget


class Publisher(Protocol):
    """The broker."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Whether the broker accepted the message, by its reason code."""
        ...


class Signer(Protocol):
    """The director: `cloud.signing.Director`."""

    def assign(self, device_id: str, targets: Sequence[DirectorTarget]) -> None:
        """Replace the whole signed set of a device."""
        ...

    def refresh_timestamps(self) -> int:
        """Renew what is about to expire."""
        ...
