"""What the API says of commands to devices."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edge_agent.wire.commands import MAX_LIFE_S, MAX_TIMEOUT_S, CommandName
from edge_agent.wire.ids import Slug
from fleet.client.schemas import ApiModel, ApiRequest, Json, Page

CommandStateName = Literal[
    "queued", "sent", "accepted", "done", "failed", "refused", "expired", "timed_out", "cancelled"
]
"""Of `fleet.commands.machine`; the last six end a command."""
CommandId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class CommandIn(ApiRequest):
    """Ask devices for a command: those named, or those that match a query.

    Attributes:
        arguments: of the command, see `edge_agent.wire.commands.ARGUMENTS`.
        query: as in `fleet.devices.query`; `group("edge")` names a group.
        expires_in_s: seconds until a device that was not reached does it no more.
        timeout_s: seconds that a device has once it accepted.
        reason: for the audit.
    """

    name: CommandName
    arguments: Json = Field(default_factory=dict)
    devices: list[Slug] = Field(default_factory=list, max_length=10_000)
    query: str = Field(default="", max_length=2000)
    expires_in_s: float = Field(default=3600.0, ge=10, le=MAX_LIFE_S)
    timeout_s: float = Field(default=120.0, ge=1, le=MAX_TIMEOUT_S)
    reason: str = Field(default="", max_length=300)

    @model_validator(mode="after")
    def _means_somebody(self) -> Self:
        if bool(self.devices) == bool(self.query.strip()):
            raise ValueError("name devices, or give a query; one of the two")
        return self


class CommandOut(ApiModel):
    """One command to one device.

    Attributes:
        batch: of all that were asked for together.
        certain: the device itself ended it; otherwise its word may still correct the state.
        attachment: media_type, length, sha256 of what can be downloaded; empty when nothing can.
    """

    id: str
    batch: str
    device: str
    name: str
    arguments: Json
    state: CommandStateName
    certain: bool
    reason: str
    detail: str
    result: Json
    created_by: str
    created_at: float
    expires_at: float
    timeout_s: float
    attempts: int
    sent_at: float | None
    accepted_at: float | None
    ended_at: float | None
    attachment: Json = Field(default_factory=dict)


class CommandPage(Page):
    items: list[CommandOut]


class CommandBatch(ApiModel):
    """What was asked for; `items` are the first hundred."""

    batch: str
    total: int
    items: list[CommandOut]


class CommandsCancelled(ApiModel):
    """How many commands of a batch were taken back; the others have been answered."""

    batch: str
    cancelled: int
