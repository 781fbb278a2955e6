"""Errors of the link room.

LinkError
├── NotConnected   no line to the broker now
├── OutboxFull     (operator) the journal is full of what may not be dropped
└── OutboxBroken   (operator) the journal's file is damaged or not ours
"""

from __future__ import annotations


class LinkError(Exception):
    """Base of the link room."""


class NotConnected(LinkError):
    """No line to the broker at the moment."""


class OutboxFull(LinkError):
    """The journal has no room, and nothing in it may be dropped."""


class OutboxBroken(LinkError):
    """The journal cannot be read or written."""
