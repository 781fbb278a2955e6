"""Asking for jobs, from any process: a job is a row that the worker turns into a workflow."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from cloud.db.engine import Sessions
from cloud.errors import Conflict, NotFound, UserError
from cloud.jobs.records import JobRecords

log = logging.getLogger("skerry.jobs")

KINDS = ("build", "retrain")
PARAMS = frozenset({"quick", "reason"})
"""What a job may be told: `quick` shortens the measurements; `reason` says why it was started."""


class JobQueue:
    """Starts and cancels jobs.  Holds no connection of its own."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float] = time.time) -> None:
        self._records = JobRecords(sessions, clock)

    def enqueue(
        self, kind: str, project: str, params: Mapping[str, JsonValue] | None = None
    ) -> str:
        """Ask for a job; returns its id.

        Raises:
            UserError: no such kind or parameter.
        """
        if kind not in KINDS:
            raise UserError(f"no job kind {kind!r}; there are {' and '.join(KINDS)}")
        for name in params or {}:
            if name not in PARAMS:
                raise UserError(f"a job has no parameter {name!r}; there is {', '.join(PARAMS)}")
        job_id = f"{kind}-{secrets.token_hex(6)}"
        self._records.add(job_id, kind, project, params or {})
        log.info("job.queued job=%s kind=%s project=%s", job_id, kind, project)
        return job_id

    def cancel(self, job_id: str) -> None:
        """Cancel a job; its process ends within a second, its finished steps stay cached.

        Raises:
            NotFound: there is no such job.
            Conflict: it has ended already.
        """
        if self._records.end(job_id, "cancelled"):
            log.info("job.cancelled job=%s", job_id)
            return
        job = self._records.get(job_id)
        if job is None:
            raise NotFound(f"no job {job_id!r}")
        raise Conflict(f"job {job_id} has {job.state} already")
