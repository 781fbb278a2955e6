"""Errors of the room.

CommandError       carries `reason`, a slug for the control plane, and one line for a person
├── Refused        (operator) nothing was begun
└── Failed         (device) it was begun and could not be done
"""

from __future__ import annotations


class CommandError(Exception):
    """Base of the room."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Refused(CommandError):
    """The device does not do it."""


class Failed(CommandError):
    """The device could not do it."""
