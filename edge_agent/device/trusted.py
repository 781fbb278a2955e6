"""Whom this device trusts for updates: the roots it was enrolled with."""

from __future__ import annotations

from edge_agent.device.identity import Identity
from edge_agent.update.ports import Fetch
from edge_agent.update.trust import Trust


def open_trust(identity: Identity, fetch: Fetch) -> Trust:
    """The device's trust over `fetch`; its marks and cache are on the disk, shared by all."""
    member = identity.membership
    return Trust(
        identity.directory / "trust",
        fetch,
        member.device_id,
        member.profile,
        image_root=identity.root_path("image").read_text(),
        director_root=identity.root_path("director").read_text(),
    )
