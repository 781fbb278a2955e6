"""What a directory to install from says of itself; the control plane writes it, a device reads it.

medium.json             this: what it is, for whom, and whether the export came to its end
desired/DEVICE.json     the desired twin of each device: a hint, as over the network
image/                  metadata of the image repository
director/               roots of the director; devices/DEVICE/ holds each device's own set
chunks/SHA256           chunk lists
blobs/SHA256            encoded bundles
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from edge_agent.wire.base import WireModel
from edge_agent.wire.ids import Slug

INDEX_NAME: Final = "medium.json"
MAX_INDEX_BYTES: Final = 1 << 20
MAX_DEVICES: Final = 10_000


class MediumIndex(WireModel):
    """`medium.json`: what a person is told; nothing in it is trusted.

    Attributes:
        complete: False while an export is under way, or after one that broke off.
        created_at: seconds since the epoch.
        expires_at: when the first of the signed files expires, which ends its use.
    """

    schema_version: Literal[1] = 1
    complete: bool
    created_at: float
    expires_at: float
    devices: tuple[Slug, ...] = Field(max_length=MAX_DEVICES)
