"""Claims: one-time rights to enrol.  Pure; the caller stores them and holds the clock.

A refused claim is told apart from a wrong secret only when the secret is right, so that nobody
learns the state of a claim that is not theirs.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from fleet.enrolment.errors import ClaimRefused

__all__ = ["UNKNOWN", "ClaimRefused", "NewClaim", "StoredClaim", "check", "digest", "new_claim"]

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


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """What is kept of a claim.

    Attributes:
        secret_sha256: hexadecimal digest of the secret.
        expires_at: seconds since the epoch.
        used_by: id of the device that enrolled with it.
        profile: hardware profile that the claim is bound to; empty when the caller binds it.
    """

    secret_sha256: str
    expires_at: float
    used_by: str | None
    revoked: bool
    profile: str = ""


def digest(secret: str) -> str:
    """Digest under which a secret is stored.  256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_claim() -> NewClaim:
    """A claim with a fresh id and 256 random bits of secret."""
    secret = secrets.token_urlsafe(32)
    return NewClaim(secrets.token_hex(8), secret, digest(secret))


def check(claim: StoredClaim, secret: str, now: float, *, profile: str | None = None) -> None:
    """Check that `claim` may be used now by one who knows `secret`.

    Args:
        claim: as stored.
        secret: as received.
        now: seconds since the epoch.
        profile: profile that the device claims for itself; not checked when left out.

    Raises:
        ClaimRefused: saying why in one line.
    """
    if not hmac.compare_digest(digest(secret), claim.secret_sha256):
        raise ClaimRefused(UNKNOWN)
    if claim.revoked:
        raise ClaimRefused("the claim was revoked")
    if claim.used_by is not None:
        raise ClaimRefused("the claim was used already")
    # written so that a time that is not a number refuses
    if not now < claim.expires_at:
        raise ClaimRefused("the claim has expired")
    if profile is not None and profile != claim.profile:
        raise ClaimRefused(f"the claim is for profile {claim.profile!r}")
