"""Errors of enrolment.

EnrolmentError
├── ClaimRefused           (device) the claim gives no right to enrol
├── BadCertificateRequest  (device) the request is malformed, or asks for what we do not sign
├── ReservedName           (device) a name that belongs to the control plane
├── TooManyRefusals        (device) refused too often; later
└── AuthorityUnreadable    (operator) the authority's files are damaged, or the passphrase is wrong
"""

from __future__ import annotations


class EnrolmentError(Exception):
    """Base; the text is one line for a person and never holds a secret."""


class ClaimRefused(EnrolmentError):
    """The claim is unknown, used, revoked or too old, or the secret is wrong."""


class BadCertificateRequest(EnrolmentError):
    """The certificate request cannot be signed."""


class ReservedName(EnrolmentError):
    """The device asks for a name that is not for devices."""


class TooManyRefusals(EnrolmentError):
    """Refused so often that it is not looked at before `retry_after_s` seconds have passed."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            f"enrolment was refused too often from this address; try again in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


class AuthorityUnreadable(EnrolmentError):
    """Key and certificate of the authority cannot be read."""
