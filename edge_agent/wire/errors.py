"""Errors of the wire room.

WireError            a peer sent something that is not what the contract says
├── MessageTooLarge  longer than the reader's bound; refused before parsing
├── MalformedMessage not parsable, or a field is wrong
└── UnknownTopic     a topic that the contract does not have
"""

from __future__ import annotations


class WireError(ValueError):
    """A peer broke the contract; the message is dropped and counted."""


class MessageTooLarge(WireError):
    """The message is longer than its reader accepts."""

    def __init__(self, what: str, length: int, limit: int) -> None:
        super().__init__(f"{what}: {length} bytes exceed the limit of {limit}")
        self.length = length
        self.limit = limit


class MalformedMessage(WireError):
    """The message does not parse, or a field has a wrong type or value."""


class UnknownTopic(WireError):
    """The topic is not part of the contract."""
