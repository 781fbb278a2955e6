"""Errors of the signing room, all for the operator.

SigningError
├── KeysMissing        fewer private keys at hand than a role's threshold
├── WrongPassphrase    a key file does not open
└── ConflictingTarget  a target's name is taken by other bytes; counters are never reused
"""

from __future__ import annotations

from cloud.errors import OperatorError


class SigningError(OperatorError):
    """Metadata could not be signed."""


class KeysMissing(SigningError):
    """Fewer private keys at hand than the role's threshold."""


class WrongPassphrase(SigningError):
    """A key file does not open with this passphrase."""


class ConflictingTarget(SigningError):
    """The target's name is taken by other bytes."""
