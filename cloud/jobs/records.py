"""The jobs table: what people see of a job, and how they cancel it.

    queued ──► running ──► succeeded | failed
       └──────────┴──────► cancelled

A final state is never left; a late report of a cancelled job changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from pydantic import JsonValue
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Job

OPEN_STATES: Final = ("queued", "running")
MAX_ERROR_CHARS: Final = 500

Kind = Literal["build", "retrain"]
Outcome = Literal["succeeded", "failed", "cancelled"]


class JobRecords:
    """Reads and writes job rows, each in a transaction of its own."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float] = time.time) -> None:
        self._sessions = sessions
        self._readers = read_only(sessions)
        self._clock = clock

    def add(self, job_id: str, kind: str, project: str, params: Mapping[str, JsonValue]) -> None:
        """A new job, queued."""
        now = self._clock()
        with self._sessions.begin() as session:
            session.add(
                Job(
                    id=job_id, kind=kind, project=project, state="queued", params=dict(params),
                    result={}, created_at=now, updated_at=now,
                )
            )  # fmt: skip

    def get(self, job_id: str) -> Job | None:
        with self._readers() as session:
            return session.get(Job, job_id)

    def queued(self) -> list[tuple[str, str]]:
        """Ids and kinds of all queued jobs, oldest first."""
        with self._readers() as session:
            rows = session.execute(
                select(Job.id, Job.kind).where(Job.state == "queued").order_by(Job.created_at)
            )
            return [(row.id, row.kind) for row in rows]

    def running(self) -> list[str]:
        with self._readers() as session:
            return list(session.scalars(select(Job.id).where(Job.state == "running")))

    def is_open(self, job_id: str) -> bool:
        """Whether the job is neither finished nor cancelled."""
        with self._readers() as session:
            state = session.scalar(select(Job.state).where(Job.id == job_id))
            return state in OPEN_STATES

    def progress(self, job_id: str, step: str, share: float) -> None:
        """Note where an open job is; `share` of all work, 0..1."""
        with self._sessions.begin() as session:
            self._change(session, job_id, state="running", step=step, progress=round(share, 4))

    def note(self, job_id: str, result: Mapping[str, JsonValue]) -> bool:
        """Show what an open job has found so far; `finish` replaces it."""
        with self._sessions.begin() as session:
            return self._change(session, job_id, result=dict(result))

    def finish(
        self,
        session: Session,
        job_id: str,
        outcome: Outcome,
        *,
        error: str = "",
        result: Mapping[str, JsonValue] | None = None,
    ) -> bool:
        """End an open job within the caller's transaction; False if it had ended already."""
        values: dict[str, Any] = {"state": outcome, "error": error[:MAX_ERROR_CHARS]}
        if result is not None:
            values["result"] = dict(result)
        if outcome == "succeeded":
            values |= {"progress": 1.0, "step": "done"}
        return self._change(session, job_id, **values)

    def end(
        self,
        job_id: str,
        outcome: Outcome,
        *,
        error: str = "",
        result: Mapping[str, JsonValue] | None = None,
    ) -> bool:
        """`finish` in a transaction of its own."""
        with self._sessions.begin() as session:
            return self.finish(session, job_id, outcome, error=error, result=result)

    def _change(self, session: Session, job_id: str, **values: Any) -> bool:
        changed = session.execute(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(OPEN_STATES))
            .values(updated_at=self._clock(), **values)
            .returning(Job.id)
        )
        return changed.first() is not None
