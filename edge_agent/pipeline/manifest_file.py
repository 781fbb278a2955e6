"""The manifest of an unpacked bundle, read where its network, code and known answers stand."""

from __future__ import annotations

from pathlib import Path

from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest


def read(directory: Path) -> Manifest:
    """The manifest in `directory`.  No more than its limit is read.

    Raises:
        OSError: there is none, or the disk refused.
        WireError: it is longer than its limit, or no manifest.
    """
    with (directory / MANIFEST_NAME).open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    return Manifest.decode(data, limit=MAX_MANIFEST_BYTES)
