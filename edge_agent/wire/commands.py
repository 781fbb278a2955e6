"""Commands to one device: what cannot be said as a desired state, and how the device answers.

A command comes on the device's `command` topic, which the broker lets nobody but the control plane
write.  It is not retained; the broker drops it at its expiry, and so does the device.

A device answers on `up/command` with frames: a `CommandReport`, and as the payload of a "part" a
piece of what it attaches.  One "accepted" or "refused" or "expired" comes first; after "accepted"
any parts, then "done" or "failed".  Parts are committed like every journalled message, each once,
in any order: who reads them puts them together by number and checks length and digest.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from edge_agent.wire.base import WireModel
from edge_agent.wire.ids import Digest, Slug

MAX_COMMAND_BYTES: Final = 8 * 1024
"""Bound of one command."""
MAX_LIFE_S: Final = 7 * 86_400.0
"""Longest time from issue to expiry; a device refuses what claims a longer one."""
MAX_TIMEOUT_S: Final = 3600.0
"""Longest time that a device may work on a command."""
PART_BYTES: Final = 64 * 1024
"""Length of every part of an attachment but the last."""
MAX_ATTACHMENT_BYTES: Final = 4 << 20
MAX_LOG_BYTES: Final = 64 * 1024
"""Bound of what `logs` answers."""
MAX_LOG_LINES: Final = 5000
MAX_RESULT_BYTES: Final = 8 * 1024
"""Bound of `CommandReport.result` as JSON."""
MAX_OVERRIDE_S: Final = 7 * 86_400.0
"""Longest time that a sampling override holds."""

CommandName = Literal["restart", "diagnostics", "logs", "sampling", "resend"]
COMMAND_NAMES: Final[tuple[CommandName, ...]] = get_args(CommandName)

ReportState = Literal["accepted", "part", "done", "failed", "refused", "expired"]
"""What one answer says.  "done", "failed", "refused" and "expired" end the command."""
FINAL_REPORTS: Final[frozenset[ReportState]] = frozenset({"done", "failed", "refused", "expired"})

MediaType = Literal["text/plain", "application/zip"]


class Command(WireModel):
    """Do this, once, before `expires_at`.

    Attributes:
        id: drawn for this command; never used again.
        device: whom it is for; another one drops it.
        name: of `COMMAND_NAMES`; a device refuses one that it does not know.
        arguments: of the command, see `ARGUMENTS`; an argument that is not known is refused too.
        issued_at, expires_at: seconds since the epoch by the control plane's clock.
        timeout_s: seconds that the device may take from "accepted" on.
    """

    id: Slug
    device: Slug
    name: Annotated[str, StringConstraints(min_length=1, max_length=32)]
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    issued_at: float = Field(allow_inf_nan=False)
    expires_at: float = Field(allow_inf_nan=False)
    timeout_s: float = Field(default=120.0, gt=0, le=MAX_TIMEOUT_S)


class Attachment(WireModel):
    """What a device sends beside its answer, cut into parts.

    Attributes:
        length: bytes of the whole.
        sha256: of the whole.
        parts: how many pieces of `PART_BYTES`, the last one shorter.
    """

    media_type: MediaType
    length: int = Field(ge=1, le=MAX_ATTACHMENT_BYTES)
    sha256: Digest
    parts: int = Field(ge=1, le=MAX_ATTACHMENT_BYTES // PART_BYTES)

    @model_validator(mode="after")
    def _adds_up(self) -> Attachment:
        if self.parts != -(-self.length // PART_BYTES):
            raise ValueError(f"{self.length} bytes are not {self.parts} parts")
        return self


class CommandReport(WireModel):
    """Head of every answer to a command.

    Attributes:
        command: the command's id.
        reason: machine-readable cause of "failed", "refused" and "expired", e.g. "not_allowed".
        detail: one line for a person.
        result: small facts of a "done", within `MAX_RESULT_BYTES`.
        boot: the start of the agent that answers: after a restart another one than before.
        attachment: of every "part", and of a "done" that parts belong to.
        part: number of the piece in the payload, from 0; of a "part" only.
        at: seconds since the epoch by the device's clock.
    """

    command: Slug
    state: ReportState
    reason: str = Field(default="", max_length=64)
    detail: str = Field(default="", max_length=500)
    result: dict[str, JsonValue] = Field(default_factory=dict)
    boot: str = Field(default="", max_length=64)
    attachment: Attachment | None = None
    part: int = Field(default=0, ge=0)
    at: float = Field(default=0.0, allow_inf_nan=False)


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


class Arguments(BaseModel):
    """Base of what commands take.  What nobody reads is refused: it may be a limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RestartArguments(Arguments):
    """Restart the agent.

    Attributes:
        during_update: also while a version is on its way or on probation; refused otherwise.
    """

    during_update: bool = False


class DiagnosticsArguments(Arguments):
    """Pack what a person needs to understand the device."""


class LogsArguments(Arguments):
    """Send the last lines of the log, as many of `lines` as fit into `MAX_LOG_BYTES`."""

    lines: int = Field(default=200, ge=1, le=MAX_LOG_LINES)


class SamplingArguments(Arguments):
    """Sample a model differently for some time.

    Rates decide which inputs become samples; byte budget, spool and privacy hooks of the model's
    manifest hold all the same.

    Attributes:
        for_s: how long, in seconds; 0 ends the override that is there.
        uniform_rate, uncertain_rate: instead of the manifest's; None leaves them.
        max_bytes_per_minute: a budget below the manifest's; a larger one changes nothing.
    """

    model: Slug
    for_s: float = Field(ge=0, le=MAX_OVERRIDE_S)
    uniform_rate: float | None = Field(default=None, ge=0, le=1)
    uncertain_rate: float | None = Field(default=None, ge=0, le=1)
    max_bytes_per_minute: int | None = Field(default=None, ge=0, le=2**53 - 1)

    @model_validator(mode="after")
    def _changes_something(self) -> SamplingArguments:
        given = (self.uniform_rate, self.uncertain_rate, self.max_bytes_per_minute)
        if self.for_s and all(value is None for value in given):
            raise ValueError("name uniform_rate, uncertain_rate or max_bytes_per_minute")
        return self


class ResendArguments(Arguments):
    """Say everything again: the whole state and the metrics so far."""


ARGUMENTS: Final[dict[CommandName, type[Arguments]]] = {
    "restart": RestartArguments,
    "diagnostics": DiagnosticsArguments,
    "logs": LogsArguments,
    "sampling": SamplingArguments,
    "resend": ResendArguments,
}
"""What each command takes."""
