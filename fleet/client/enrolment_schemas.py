"""What the API says about identities: claims in batches, revocation."""

from __future__ import annotations

from fleet.client.schemas import ApiModel


class ClaimsRevoked(ApiModel):
    """How many claims of a batch were open until now."""

    revoked: int
