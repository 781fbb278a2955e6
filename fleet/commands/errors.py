"""Errors of commands.

CommandError
└── CommandEnded   (user) it has ended already, or the device is at it
"""

from __future__ import annotations


class CommandError(Exception):
    """Base of the room."""


class CommandEnded(CommandError):
    """Nothing can be taken back any more."""
