"""The schedule of the learning loop: check drift, decide about retraining, start the job.

Drift buys labels; harm that labels confirm starts retraining (`cloud.retrain`).  Each part writes
in one transaction; the job is queued after it, and a decision that was lost in between is made
again.
"""

from __future__ import annotations

import logging

from sqlalchemy import select

from cloud import drift, retrain
from cloud.blobs import Blobs
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import ModelVersion
from cloud.jobs.client import JobQueue

log = logging.getLogger("skerry.learning")


class LearningSchedule:
    """Does what is due; call `turn` often, as the leader alone."""

    def __init__(self, sessions: Sessions, blobs: Blobs, jobs: JobQueue, interval_s: float) -> None:
        """
        Args:
            interval_s: seconds between two checks of all champions.
        """
        self._sessions = sessions
        self._blobs = blobs
        self._jobs = jobs
        self._interval_s = interval_s
        self._due = 0.0

    def turn(self, now: float) -> None:
        """Check every champion and start the retrainings that are due, if it is time."""
        if now < self._due:
            return
        self._due = now + self._interval_s
        with read_only(self._sessions)() as session:
            champions = session.scalars(
                select(ModelVersion).where(ModelVersion.state == "champion")
            ).all()
            judged = [
                drift.judge(session, self._blobs, champion.model, champion.version, now=now)
                for champion in champions
            ]
        with self._sessions.begin() as session:
            for reports in judged:
                drift.record(session, reports)
        with self._sessions.begin() as session:
            turns = retrain.tick(session, now)
        for turn in turns:
            if turn.start_job:
                job = self._jobs.enqueue("retrain", turn.project, {"reason": turn.decision.reason})
                log.info("retrain.started job=%s model=%s", job, turn.model)
