"""Errors of the signing room, all for the operator.

SigningError
├── KeysMissing        fewer private keys at hand than a role's threshold
├── WrongPassphrase    a key file does not open
├── BadKeyFile         a file holds no key that can sign metadata
├── SignerUnavailable  a token or key service cannot be used: package, device, PIN or network
├── DamagedMetadata    a file of a repository is no metadata: restore it from a backup
├── ConflictingTarget  a target's name is taken by other bytes; counters are never reused
├── BadRotation        a change of keys that would leave a role unable to sign
└── BadRequest         a signing request that is damaged, foreign, or wrongly signed
    └── StaleRequest   what it asks for is no longer what waits for signatures
"""

from __future__ import annotations

from cloud.errors import OperatorError


class SigningError(OperatorError):
    """Metadata could not be signed."""


class KeysMissing(SigningError):
    """Fewer private keys at hand than the role's threshold."""


class WrongPassphrase(SigningError):
    """A key file does not open with this passphrase."""


class BadKeyFile(SigningError):
    """A file holds no key of a kind that signs metadata."""


class SignerUnavailable(SigningError):
    """A token or a key service cannot be used now."""


class DamagedMetadata(SigningError):
    """A file of a repository holds no metadata."""


class ConflictingTarget(SigningError):
    """The target's name is taken by other bytes."""


class BadRotation(SigningError):
    """A change of keys that makes no sense for the role."""


class BadRequest(SigningError):
    """A signing request is damaged, of another control plane, or wrongly signed."""


class StaleRequest(BadRequest):
    """What waits for signatures has changed since the request was made."""
