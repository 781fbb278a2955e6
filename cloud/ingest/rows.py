"""What a batch writes, collected, and written by a few statements however many messages it has.

The rows travel as one JSON parameter, which either database takes apart by itself: a parameter for
each value would cost more than all the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from cloud.db import order
from cloud.db.tables import Device
from edge_agent.wire.messages import MetricsReport, UpdateReport

LAST_SEEN_S: Final = 30.0
"""`last_seen` of a device that goes on talking is written this often."""

COLLECTED: Final = frozenset({"report", "metrics"})
"""Kinds of messages that `Rows` writes."""

Key = tuple[str, str, int]
"""(device, stream, seq)"""

_EACH: Final = {
    "sqlite": "json_each(:rows)",
    "postgresql": "json_array_elements(CAST(:rows AS json)) AS each(value)",
}
_AS_JSON: Final = {"sqlite": "", "postgresql": "::json"}
_AS_INT: Final = {"sqlite": "CAST(value->>2 AS INTEGER)", "postgresql": "(value->>2)::bigint"}


def _for_both(statement: str) -> dict[str, Any]:
    return {
        dialect: text(
            statement.format(
                each=_EACH[dialect], json=_AS_JSON[dialect], third_as_int=_AS_INT[dialect]
            )
        )
        for dialect in _EACH
    }


_INBOX = _for_both(
    "INSERT INTO inbox (device, stream, seq, kind, received_at) "
    "SELECT value->>0, value->>1, {third_as_int}, value->>3, :now FROM {each} WHERE true "
    "ON CONFLICT DO NOTHING RETURNING device, stream, seq"
)
_EVENTS = _for_both(
    "INSERT INTO assignment_events (device, rollout, report, at) "
    "SELECT value->>0, value->>1, (value->>2){json}, :now FROM {each}"
)
_PHASES = _for_both(
    "UPDATE assignments SET phase = r.phase, reason = r.reason, detail = r.detail, "
    "updated_at = :now FROM (SELECT value->>0 AS rollout, value->>1 AS device, "
    "{third_as_int} AS generation, value->>3 AS phase, value->>4 AS reason, value->>5 AS detail "
    "FROM {each}) AS r WHERE assignments.rollout = r.rollout AND assignments.device = r.device "
    # a report of an earlier assignment says nothing about this one
    "AND assignments.generation = r.generation"
)
_METRICS = _for_both(
    "INSERT INTO metrics (device, model, version, at, report) "
    "SELECT value->>0, value->>1, {third_as_int}, :now, (value->>3){json} FROM {each}"
)


def take_in(session: Session, keys: Sequence[tuple[Key, str]], now: float) -> set[Key]:
    """Write messages to the inbox; returns those that were not there.

    A message that another process has in work is waited for: it is then there, or it is ours.

    Args:
        keys: of the messages, with their kinds.
    """
    rows = [(*key, kind) for key, kind in sorted(keys)]  # in one order, so that nobody deadlocks
    found = _execute(session, _INBOX, rows, now)
    return {(device, stream, seq) for device, stream, seq in found}


def note_seen(session: Session, devices: Sequence[str], now: float) -> None:
    """Write when devices were last heard of; one whose row is in other hands has to wait."""
    free = select(Device.id).where(Device.id.in_(devices)).with_for_update(skip_locked=True)
    session.execute(
        update(Device)
        .where(Device.id.in_(free))
        .values(last_seen=now)
        .execution_options(synchronize_session=False)
    )


class Rows:
    """Reports and metrics of one batch."""

    def __init__(self) -> None:
        self._events: list[tuple[str, str | None, str]] = []
        self._phases: dict[tuple[str, str, int], tuple[str, str, str]] = {}
        self._metrics: list[tuple[str, str, int, str]] = []

    def report(self, device: str, report: UpdateReport, text: str) -> None:
        """Args:
        text: the report as the JSON that is kept.
        """
        self._events.append((device, report.rollout, text))
        if report.rollout is not None:
            key = (report.rollout, device, report.generation)
            self._phases[key] = (report.phase, report.reason, report.detail)

    def metrics(self, device: str, report: MetricsReport, text: str) -> None:
        self._metrics.append((device, report.model, report.version, text))

    def write(self, session: Session, now: float) -> None:
        """Write all of it in the session's transaction."""
        if self._events:
            order.share(session)
            _execute(session, _EVENTS, self._events, now)
        if self._phases:
            phases = [(*key, *phase) for key, phase in sorted(self._phases.items())]
            _execute(session, _PHASES, phases, now)
        if self._metrics:
            _execute(session, _METRICS, self._metrics, now)


def _execute(
    session: Session, statements: dict[str, Any], rows: Sequence[Sequence[Any]], now: float
) -> Sequence[Any]:
    connection = session.connection()
    parameters = {"rows": json.dumps(rows, separators=(",", ":")), "now": now}
    result = connection.execute(statements[connection.dialect.name], parameters)
    return result.all() if result.returns_rows else ()
