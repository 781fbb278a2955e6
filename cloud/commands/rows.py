"""A command's row and its pure state, one from the other."""

from __future__ import annotations

from cloud.db.tables import Command
from fleet.commands.machine import CommandState, Course


def course_of(row: Command) -> Course:
    return Course(
        expires_at=row.expires_at,
        timeout_s=row.timeout_s,
        state=CommandState(row.state),
        certain=row.certain,
        reason=row.reason,
        detail=row.detail,
        attempts=row.attempts,
        sent_at=row.sent_at,
        accepted_at=row.accepted_at,
        ended_at=row.ended_at,
    )


def write(row: Command, course: Course) -> None:
    """Bring a row up to its state."""
    row.state = course.state.value
    row.certain = course.certain
    row.reason = course.reason
    row.detail = course.detail
    row.attempts = course.attempts
    row.sent_at = course.sent_at
    row.accepted_at = course.accepted_at
    row.ended_at = course.ended_at
