"""The schedule of the learning loop: check drift, decide about retraining, start the job.

Drift buys labels; harm that labels confirm starts retraining (`cloud.retrain`).  Versions that are
being rolled out are checked beside the champions, for the gates of their waves.  Each part writes
in one transaction; the job is queued after it, and a decision that was lost in between is made
again.
"""

from __future__ import annotations

import logging

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import drift, retrain
from cloud.blobs import Blobs
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import ModelVersion, Rollout
from cloud.jobs.client import JobQueue
from fleet.rollouts.model import ACTIVE_STATES

log = logging.getLogger("skerry.learning")


class LearningSchedule:
    """Does what is due; call `turn` often, as the leader alone."""

    def __init__(self, sessions: Sessions, blobs: Blobs, jobs: JobQueue, interval_s: float) -> None:
        """
        Args:
            interval_s: seconds between two checks of all versions.
        """
        self._sessions = sessions
        self._blobs = blobs
        self._jobs = jobs
        self._interval_s = interval_s
        self._due = 0.0

    def turn(self, now: float) -> None:
        """Check what devices serve and start the retrainings that are due, if it is time."""
        if now < self._due:
            return
        self._due = now + self._interval_s
        with read_only(self._sessions)() as session:
            judged = [
                drift.judge(session, self._blobs, model, version, now=now)
                for model, version in _served(session)
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


def _served(session: Session) -> list[tuple[str, int]]:
    """Champions, and versions that are being rolled out."""
    champions = session.execute(
        select(ModelVersion.model, ModelVersion.version).where(ModelVersion.state == "champion")
    )
    active = [state.value for state in ACTIVE_STATES]
    coming = session.execute(
        select(Rollout.model, Rollout.version).where(Rollout.state.in_(active))
    )
    return sorted({(model, version) for rows in (champions, coming) for model, version in rows})
