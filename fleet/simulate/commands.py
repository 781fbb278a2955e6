"""How a simulated device answers commands: judged as the real agent judges, done in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError

from edge_agent.wire.base import describe, pack_frame
from edge_agent.wire.commands import (
    ARGUMENTS,
    MAX_LIFE_S,
    Attachment,
    Command,
    CommandReport,
    ReportState,
)

MAX_REMEMBERED: Final = 100
"""Commands that a device knows it has had; real ones remember until the expiry."""

_TEXT: Final = b"a simulated device keeps no log\n"


def refusal(command: Command, now: float) -> tuple[ReportState, str, str] | None:
    """State, reason and detail of what ends `command` before it is begun; None: nothing does."""
    if now >= command.expires_at:
        return "expired", "expired", f"it expired {now - command.expires_at:.0f} s ago"
    if command.expires_at - command.issued_at > MAX_LIFE_S:
        return "refused", "life_too_long", f"it claims to hold for more than {MAX_LIFE_S:.0f} s"
    known = ARGUMENTS.get(command.name)  # type: ignore[call-overload]
    if known is None:
        return "refused", "unknown_command", "this agent has no such command"
    try:
        known.model_validate(command.arguments)
    except ValidationError as error:
        return "refused", "bad_arguments", describe(error)
    return None


def answer(
    command: Command, state: ReportState, boot: str, at: float, reason: str = "", detail: str = ""
) -> bytes:
    """One answer without an attachment, as it is journalled."""
    report = CommandReport(
        command=command.id, state=state, reason=reason, detail=detail[:500], boot=boot, at=at
    )
    return pack_frame(report, b"")


def done(command: Command, boot: str, at: float) -> Iterator[bytes]:
    """The answers that end `command` well, an attachment's part among them where it has one."""
    if command.name not in ("logs", "diagnostics"):
        yield answer(command, "done", boot, at)
        return
    attachment = Attachment(
        media_type="text/plain",
        length=len(_TEXT),
        sha256=hashlib.sha256(_TEXT).hexdigest(),
        parts=1,
    )
    for state, body in (("part", _TEXT), ("done", b"")):
        report = CommandReport.model_validate(
            {"command": command.id, "state": state, "boot": boot, "at": at}
        ).model_copy(update={"attachment": attachment})
        yield pack_frame(report, body)
