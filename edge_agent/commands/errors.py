"""Errors of the commands, beside those of `edge_agent.device`; each is one line for a person.

DeviceError                of the device room
├── BadScoring             (user) what to score, by what, or where to cannot be
├── BadSource              (user) the directory to install from is no export for this device
├── NotInstalled           (device) what was to be installed is refused, failed or must wait
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


class BadSource(DeviceError):
    """The directory to install from is no complete export for this device."""


class NotInstalled(DeviceError):
    """What was to be installed is refused, failed or must wait."""


class NotRunning(DeviceError):
    """No agent runs in the directory."""


class CommandRefused(DeviceError):
    """The running agent does not carry the command out now."""


BAD_INPUT: Final = (BadClaim, BadSettings, NotEnrolled, AlreadyEnrolled, BadScoring, BadSource)
"""What a person gave wrongly: exit code 2."""
