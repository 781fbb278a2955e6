"""The worker: turns queued rows into workflows and runs them.  One a control plane.

Stopping it is no ceremony: children are killed and the process exits in the middle of whatever it
does, because that is what a crash does too and the next worker resumes at the same step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from dbos import DBOS, DBOSConfig, SetWorkflowID

from cloud.blobs import Blobs
from cloud.db.engine import open_sessions
from cloud.jobs.cache import StepCache
from cloud.jobs.executors import LocalProcess
from cloud.jobs.records import JobRecords
from cloud.jobs.steps import Steps
from cloud.jobs.workflows import APPLICATION_VERSION, register_workflows
from cloud.jobs.workplace import Workplace
from cloud.settings import Settings

log = logging.getLogger("skerry.jobs")

QUEUE: Final = "jobs"
POLL_S: Final = 0.5
LOST_CHECK_EVERY: Final = 20
"""Polls between two looks for jobs whose workflow is gone."""

_DEAD: Final = frozenset({"ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "SUCCESS"})


def run_worker(settings: Settings, stop: threading.Event | None = None) -> None:
    """Work until `stop` is set, or without one until SIGTERM or SIGINT; then end the process."""
    stopping = stop if stop is not None else _stop_on_signal()
    sessions = open_sessions(settings.effective_database_url)
    blobs = Blobs(settings.effective_blob_url)
    records = JobRecords(sessions)
    root = settings.directory.resolve()
    executor = LocalProcess(root / "run" / "heavy.lock")
    place = Workplace(root, records, blobs, executor)
    workflow = register_workflows(Steps(sessions, place, StepCache(sessions, blobs)), place)
    place.clear_ended()
    DBOS(config=_config(settings))
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S)
    log.info("worker.ready pid=%d", os.getpid())
    try:
        _hand_over(records, workflow, stopping)
    finally:
        executor.stop()
        log.info("worker.stopped")
        logging.shutdown()
        os._exit(0)


def _hand_over(
    records: JobRecords, workflow: Callable[[str], None], stopping: threading.Event
) -> None:
    given: set[str] = set()
    turn = 0
    while not stopping.wait(POLL_S if turn else 0):
        waiting = [job_id for job_id, _ in records.queued() if job_id not in given]
        for job_id in waiting:
            _enqueue(workflow, job_id)
            given.add(job_id)
        if turn % LOST_CHECK_EVERY == 0:
            _end_lost(records, workflow)
        turn += 1


def _enqueue(workflow: Callable[[str], None], job_id: str) -> None:
    """Enqueue under the job's id; a workflow that is there already stays the one."""
    with SetWorkflowID(job_id):
        DBOS.enqueue_workflow(QUEUE, workflow, job_id)


def _end_lost(records: JobRecords, workflow: Callable[[str], None]) -> None:
    """Jobs that claim to run although their workflow ended or never was."""
    for job_id in records.running():
        status = DBOS.get_workflow_status(job_id)
        if status is None:
            _enqueue(workflow, job_id)
            continue
        lost = status.status in _DEAD or status.app_version not in (None, APPLICATION_VERSION)
        if lost and records.end(job_id, "failed", error="the job was lost; start it again"):
            log.warning("job.lost job=%s workflow=%s", job_id, status.status)


def _config(settings: Settings) -> DBOSConfig:
    return {
        "name": "skerry",
        "system_database_url": settings.jobs_database_url,
        "application_version": APPLICATION_VERSION,
        "executor_id": "worker",
        "log_level": "WARNING",
        "run_migrations": True,
    }


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    return stop
