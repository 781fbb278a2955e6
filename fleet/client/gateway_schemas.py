"""What the API says about gateways: devices that another device speaks for."""

from __future__ import annotations

from pydantic import Field

from edge_agent.wire.ids import Slug
from fleet.client.schemas import ApiModel, ApiRequest, Labels

MAX_AT_ONCE = 1000


class BelowIn(ApiRequest):
    """Devices to register below a gateway, all of one profile.

    Attributes:
        devices: names that are not taken; those that are below this gateway already stay.
    """

    devices: list[Slug] = Field(min_length=1, max_length=MAX_AT_ONCE)
    profile: Slug
    labels: Labels = Field(default_factory=dict)


class BelowOut(ApiModel):
    """How many devices are new below the gateway, and how many are below it in all."""

    registered: int
    total: int
