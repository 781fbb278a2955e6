"""What the orchestrator and the publisher need of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cloud.broker.outgoing import NotConnected as NoConnection
from cloud.broker.outgoing import Outgoing
from cloud.errors import OperatorError
from cloud.signing import DirectorTarget, LabAssignment

__all__ = ["NoConnection", "Outgoing", "Publisher", "Signer"]


class Publisher(Protocol):
    """The broker: `cloud.broker.connection.Connection`."""

    def publish_all(self, messages: Sequence[Outgoing]) -> list[OperatorError | None]:
        """Publish in order, and wait until the broker has answered for each.

        Returns:
            For each message None, or why it did not leave: `NoConnection`, or the refusal.
        """
        ...


class Signer(Protocol):
    """The director: `cloud.signing.Director`."""

    def assign_all(
        self, sets: Mapping[str, tuple[Sequence[DirectorTarget], Sequence[LabAssignment]]]
    ) -> None:
        """Replace the whole signed sets of devices.

        Raises:
            SigningError: nothing was signed.
        """
        ...

    def refresh_timestamps(self) -> int:
        """Renew what is about to expire."""
        ...
