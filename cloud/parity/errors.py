"""Errors of the parity room: why two sides cannot be compared.  That they differ is no error.

ParityError              one line for the person who asked
├── NoRelease            the model, the version or a release for the profile is not there (user)
├── OtherVersion         the device serves another version or variant, or none (user)
├── InputsDoNotFit       the inputs do not fit the model's interface (user)
├── CannotOpen           the released bundle does not open on this machine (operator)
├── DeviceUnreachable    nobody answers at the device's address (operator)
└── DeviceAnswer         the device refuses, or answers what is no answer (device)
"""

from __future__ import annotations

from cloud.errors import Conflict, NotFound, OperatorError, SkerryError, UserError


class ParityError(SkerryError):
    """Two sides cannot be compared."""


class NoRelease(ParityError, NotFound):
    """There is nothing released to compare with."""


class OtherVersion(ParityError, Conflict):
    """The two sides are not the same version."""


class InputsDoNotFit(ParityError, UserError):
    """The inputs cannot be fed to this model."""


class CannotOpen(ParityError, OperatorError):
    """The bundle cannot be run here."""


class DeviceUnreachable(ParityError, OperatorError):
    """The device gives no answer."""


class DeviceAnswer(ParityError, OperatorError):
    """The device's answer is of no use."""
