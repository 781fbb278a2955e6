"""How far one command is.  Pure: time is passed in.

    QUEUED → SENT → ACCEPTED → DONE | FAILED
       │       │        └────→ TIMED_OUT
       │       └─────────────→ REFUSED
       └───────┴─────────────→ EXPIRED | CANCELLED

Rules:
    * A command is sent only while its device is online, and again, with growing pauses, until the
      device answers or the time is over: brokers lose what waits in a session that ends.  A device
      does each id once, so a second sending changes nothing.
    * Time runs by two limits: the device accepts it before `expires_at`, and ends it within
      `timeout_s` of that.  Both get `GRACE_S` for an answer that is on its way.
    * A device's own last word is certain, and nothing changes after it.  What was only concluded
      here (EXPIRED, TIMED_OUT, CANCELLED) gives way to it, however late it comes: the device may
      have done it and been cut off.
    * A repeated or outdated answer changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from edge_agent.wire.commands import ReportState
from fleet.commands.errors import CommandEnded

GRACE_S: Final = 60.0
"""How long an answer may take to arrive."""
RESEND_FIRST_S: Final = 30.0
RESEND_MAX_S: Final = 600.0
"""Pauses between two sendings double from the first to the longest."""


class CommandState(StrEnum):
    """See the module."""

    QUEUED = "queued"
    SENT = "sent"
    ACCEPTED = "accepted"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    EXPIRED = "expired"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


OPEN_STATES: Final = frozenset({CommandState.QUEUED, CommandState.SENT, CommandState.ACCEPTED})
WAITING_STATES: Final = frozenset({CommandState.QUEUED, CommandState.SENT})
"""The device has not answered yet."""

_LAST_WORD: Final[dict[ReportState, CommandState]] = {
    "done": CommandState.DONE,
    "failed": CommandState.FAILED,
    "refused": CommandState.REFUSED,
    "expired": CommandState.EXPIRED,
}


@dataclass(frozen=True, slots=True)
class Course:
    """One command's way.  Times are seconds since the epoch by the control plane's clock.

    Attributes:
        timeout_s: seconds that the device has from its acceptance on.
        certain: the device itself ended it.
        attempts: how often the broker took it.
        sent_at: when it did so last.
    """

    expires_at: float
    timeout_s: float
    state: CommandState = CommandState.QUEUED
    certain: bool = False
    reason: str = ""
    detail: str = ""
    attempts: int = 0
    sent_at: float | None = None
    accepted_at: float | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.state not in OPEN_STATES


def due(course: Course, now: float, *, online: bool) -> bool:
    """Whether the command should be sent now, for the first time or again."""
    if not online or course.state not in WAITING_STATES or now >= course.expires_at:
        return False
    if course.sent_at is None:
        return True
    pause_s = RESEND_FIRST_S * 2.0 ** min(course.attempts - 1, 16)
    return now >= course.sent_at + min(pause_s, RESEND_MAX_S)


def sent(course: Course, now: float) -> Course:
    """The broker has taken it."""
    if course.state not in WAITING_STATES:
        return course
    return replace(course, state=CommandState.SENT, attempts=course.attempts + 1, sent_at=now)


def reported(
    course: Course, state: ReportState, now: float, reason: str = "", detail: str = ""
) -> Course:
    """The device has answered.  A part says no more than that it was accepted."""
    if course.certain:
        return course
    last_word = _LAST_WORD.get(state)
    if last_word is None:
        if course.state is CommandState.ACCEPTED or course.accepted_at is not None:
            return course
        return replace(
            course,
            state=CommandState.ACCEPTED,
            reason="",
            detail="",
            accepted_at=now,
            ended_at=None,
        )
    return replace(
        course, state=last_word, certain=True, reason=reason, detail=detail, ended_at=now
    )


def passed(course: Course, now: float) -> Course:
    """Time has passed."""
    if course.state in WAITING_STATES and now >= course.expires_at + _grace_s(course):
        never = course.sent_at is None
        return _concluded(
            course,
            CommandState.EXPIRED,
            now,
            "not_delivered" if never else "not_answered",
            "the device was not online before it expired"
            if never
            else "the device did not answer before it expired",
        )
    accepted_at = course.accepted_at
    if (
        course.state is CommandState.ACCEPTED
        and accepted_at is not None
        and now >= accepted_at + course.timeout_s + GRACE_S
    ):
        return _concluded(
            course,
            CommandState.TIMED_OUT,
            now,
            "no_answer",
            f"accepted, and no answer within {course.timeout_s:g} s",
        )
    return course


def cancelled(course: Course, now: float, actor: str) -> Course:
    """A person takes it back.  A device that has it already may do it all the same.

    Raises:
        CommandEnded: it has ended, or the device is at it.
    """
    if course.state is CommandState.ACCEPTED:
        raise CommandEnded("the device has accepted it and is at it")
    if course.ended:
        raise CommandEnded(f"it has ended already: {course.state.value}")
    detail = f"taken back by {actor}"
    if course.sent_at is not None:
        detail += "; it was on its way, so the device may do it all the same"
    return _concluded(course, CommandState.CANCELLED, now, "cancelled", detail)


def _concluded(course: Course, state: CommandState, now: float, reason: str, detail: str) -> Course:
    return replace(course, state=state, reason=reason, detail=detail, ended_at=now)


def _grace_s(course: Course) -> float:
    """Nothing is on its way before the first sending."""
    return 0.0 if course.sent_at is None else GRACE_S
