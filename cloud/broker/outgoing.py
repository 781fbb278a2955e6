"""What is published, and why it may not leave."""

from __future__ import annotations

from dataclasses import dataclass

from cloud.errors import OperatorError


class NotConnected(OperatorError):
    """There is no connection to the broker at the moment."""


class PublishRefused(OperatorError):
    """The broker refused a message, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish at QoS 1.

    Attributes:
        expiry_s: seconds after which the broker drops what it could not deliver; None is never.
    """

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None
