"""What the orchestrator needs of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cloud.signing import DirectorTarget, LabAssignment


class Publisher(Protocol):
    """The broker: `cloud.broker.connection.Connection`."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        *,
        expiry_s: int | None = None,
    ) -> None:
        """Publish, and wait until the broker has accepted the message by its reason code.

        Args:
            expiry_s: seconds after which the broker drops what it could not deliver.

        Raises:
            OperatorError: there is no connection, or it was refused.
        """
        ...


class Signer(Protocol):
    """The director: `cloud.signing.Director`."""

    def assign(
        self,
        device_id: str,
        targets: Sequence[DirectorTarget],
        lab: Sequence[LabAssignment] = (),
    ) -> None:
        """Replace the whole signed set of a device."""
        ...

    def refresh_timestamps(self) -> int:
        """Renew what is about to expire."""
        ...
