"""Whom this device trusts for updates: the roots it was enrolled with."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from edge_agent.device.identity import Identity
from edge_agent.update.ports import Fetch
from edge_agent.update.trust import Trust


def open_trust(identity: Identity, fetch: Fetch, name: str = "trust") -> Trust:
    """The device's trust over `fetch`; its marks and cache are on the disk, shared by all.

    Args:
        name: directory of marks and cache; whoever runs beside the updater needs one of its own.
    """
    member = identity.membership
    return Trust(
        identity.directory / name,
        fetch,
        member.device_id,
        member.profile,
        image_root=identity.root_path("image").read_text(),
        director_root=identity.root_path("director").read_text(),
        earliest=issued_at(identity.certificate_path),
    )


def issued_at(certificate: Path) -> float:
    """When the authority began this certificate, in seconds since the epoch; 0 when unreadable.

    A device whose clock stands at 1970 knows at least that much of the time.
    """
    try:
        begin = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_before_utc
    except (OSError, ValueError):
        return 0.0
    return begin.timestamp()
