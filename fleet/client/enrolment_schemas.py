"""What the API says about identities: claims in batches, revocation."""

from __future__ import annotations

from pydantic import Field

from fleet.client.schemas import ApiModel, ApiRequest


class ClaimsRevoked(ApiModel):
    """How many claims of a batch were open until now."""

    revoked: int


class RevocationIn(ApiRequest):
    """Why a device's identity is taken away; for the audit and whoever looks at the device."""

    reason: str = Field(default="", max_length=200)
