"""Errors of the device room; each is one line for the person at the device.

DeviceError
├── BadSettings       (user) agent.toml has a wrong key or value
├── BadClaim          (user) the claim file cannot be read
├── NotEnrolled       (user) the directory holds no identity
├── AlreadyEnrolled   (user) the directory holds one already
├── KeyUnavailable    (operator) the TPM, or OpenSSL's way to it, cannot be used
├── BadCertificate    (operator) the control plane sent a certificate that is not ours
├── EnrolmentRefused  (operator) the control plane said no
├── Unreachable       (operator) the control plane does not answer
└── AgentRunning      (user) another process holds the directory
"""

from __future__ import annotations


class DeviceError(Exception):
    """Base of the device room."""


class BadSettings(DeviceError):
    """agent.toml has a wrong key or value."""


class BadClaim(DeviceError):
    """The claim file cannot be read."""


class NotEnrolled(DeviceError):
    """The directory holds no identity."""


class AlreadyEnrolled(DeviceError):
    """The directory holds an identity already."""


class KeyUnavailable(DeviceError):
    """The device's key is in a TPM that cannot be used."""


class BadCertificate(DeviceError):
    """The control plane sent a certificate that is not this device's."""


class EnrolmentRefused(DeviceError):
    """The control plane refused the enrolment."""


class Unreachable(DeviceError):
    """The control plane does not answer."""


class AgentRunning(DeviceError):
    """Another process holds the directory."""
