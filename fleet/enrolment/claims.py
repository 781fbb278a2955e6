"""Claims: one-time rights to enrol.  Pure; the caller stores them and holds the clock.

Rules:
    * A refused claim is told apart from a wrong secret only when the secret is right, so that
      nobody learns the state of a claim that is not theirs.
    * A claim makes one identity.  Whose answer was lost may ask again with the same key: they get
      the certificate that was made for it, and nothing new.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import Enum

from fleet.enrolment.errors import ClaimRefused

__all__ = [
    "UNKNOWN", "ClaimRefused", "Grant", "NewClaim", "StoredClaim", "check", "digest", "new_claim",
]  # fmt: skip

UNKNOWN = "unknown claim or wrong secret"
"""The one answer to both."""


@dataclass(frozen=True, slots=True)
class NewClaim:
    """A fresh claim.  `secret` goes into the claim file and nowhere else."""

    claim_id: str
    secret: str
    secret_sha256: str

    def __repr__(self) -> str:
        return f"NewClaim(claim_id={self.claim_id!r})"


class Grant(Enum):
    """What a claim gives."""

    NEW = "a new identity"
    AGAIN = "the one that was made with it"


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """What is kept of a claim.

    Attributes:
        secret_sha256: hexadecimal digest of the secret.
        expires_at: seconds since the epoch.
        used_by: id of the device that enrolled with it.
        profile: hardware profile that the claim is bound to; empty when the caller binds it.
        device: the only name that it enrols; empty when any will do.
        key_sha256: digest of the public key that it was used with.
    """

    secret_sha256: str
    expires_at: float
    used_by: str | None
    revoked: bool
    profile: str = ""
    device: str = ""
    key_sha256: str = ""


def digest(secret: str) -> str:
    """Digest under which a secret is stored.  256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_claim() -> NewClaim:
    """A claim with a fresh id and 256 random bits of secret."""
    secret = secrets.token_urlsafe(32)
    return NewClaim(secrets.token_hex(8), secret, digest(secret))


def check(
    claim: StoredClaim,
    secret: str,
    now: float,
    *,
    profile: str | None = None,
    name: str | None = None,
    key_sha256: str = "",
) -> Grant:
    """Check that `claim` may be used now by one who knows `secret`.

    Args:
        claim: as stored.
        secret: as received.
        now: seconds since the epoch.
        profile: profile that the device claims for itself; not checked when left out.
        name: id that the device wishes; not checked when left out.
        key_sha256: digest of its public key, which its request has proven to be its own.

    Raises:
        ClaimRefused: saying why in one line.
    """
    if not hmac.compare_digest(digest(secret), claim.secret_sha256):
        raise ClaimRefused(UNKNOWN)
    if claim.revoked:
        raise ClaimRefused("the claim was revoked")
    if profile is not None and profile != claim.profile:
        raise ClaimRefused(
            f"the device says that it is a {profile!r}; the claim is for profile {claim.profile!r}"
        )
    if claim.used_by is not None:
        if key_sha256 and hmac.compare_digest(key_sha256, claim.key_sha256):
            return Grant.AGAIN
        raise ClaimRefused("the claim was used already")
    if claim.device and name not in (None, claim.device):
        raise ClaimRefused(f"the claim is for device {claim.device!r} and no other")
    # written so that a time that is not a number refuses
    if not now < claim.expires_at:
        raise ClaimRefused("the claim has expired")
    return Grant.NEW
