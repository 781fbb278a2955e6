"""Errors of the commands, beside those of `edge_agent.device`; each is one line for a person.

DeviceError                of the device room
├── BadScoring             (user) what to score, by what, or where to cannot be
├── BadMedium              (user) the directory to install from holds nothing for this device
├── NotRunning             (user) no agent runs in the directory
└── CommandRefused         (user) the running agent does not carry the command out now
"""

from __future__ import annotations

from typing import Final

from edge_agent.device.errors import (
    AlreadyEnrolled,
    BadClaim,
    BadSettings,
    DeviceError,
    NotEnrolled,
)


class BadScoring(DeviceError):
    """What to score, by what, or where to cannot be."""


class BadMedium(DeviceError):
    """The directory to install from cannot be read as one."""


class NotRunning(DeviceError):
    """No agent runs in the directory."""


class CommandRefused(DeviceError):
    """The running agent does not carry the command out now."""


BAD_INPUT: Final = (BadClaim, BadSettings, NotEnrolled, AlreadyEnrolled, BadScoring, BadMedium)
"""What a person gave wrongly: exit code 2."""
