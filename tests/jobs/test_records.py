"""The jobs table: asking for jobs, cancelling them, and final states."""

from __future__ import annotations

import pytest

from cloud.db.engine import Sessions
from cloud.errors import Conflict, NotFound, UserError
from cloud.jobs.client import JobQueue
from cloud.jobs.records import JobRecords


@pytest.fixture
def records(sessions: Sessions) -> JobRecords:
    return JobRecords(sessions, clock=lambda: 5.0)


def test_a_job_that_was_asked_for_waits_in_the_queue(
    sessions: Sessions, records: JobRecords
) -> None:
    job_id = JobQueue(sessions, clock=lambda: 3.0).enqueue("build", "digits", {"quick": True})
    job = records.get(job_id)
    assert job is not None
    assert (job.state, job.kind, job.params, job.created_at) == (
        "queued", "build", {"quick": True}, 3.0,
    )  # fmt: skip
    assert records.queued() == [(job_id, "build")]


@pytest.mark.parametrize(
    ("kind", "params", "complaint"),
    [
        ("bild", {}, "no job kind 'bild'; there are build and retrain"),
        ("build", {"fast": True}, "a job has no parameter 'fast'"),
    ],
)
def test_a_wrong_request_is_refused(
    sessions: Sessions, kind: str, params: dict[str, bool], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        JobQueue(sessions).enqueue(kind, "digits", dict(params))


def test_progress_makes_a_job_running(records: JobRecords) -> None:
    records.add("j", "build", "digits", {})
    records.progress("j", "train:small", 0.25)
    job = records.get("j")
    assert job is not None
    assert (job.state, job.step, job.progress) == ("running", "train:small", 0.25)
    assert records.running() == ["j"]


def test_a_cancelled_job_stays_cancelled(sessions: Sessions, records: JobRecords) -> None:
    records.add("j", "build", "digits", {})
    JobQueue(sessions).cancel("j")
    assert not records.is_open("j")
    records.progress("j", "late", 0.9)
    assert not records.end("j", "succeeded", result={"version": 1})
    job = records.get("j")
    assert job is not None
    assert (job.state, job.step, job.result) == ("cancelled", "", {})


def test_cancelling_what_has_ended_or_never_was_is_refused(
    sessions: Sessions, records: JobRecords
) -> None:
    records.add("j", "build", "digits", {})
    assert records.end("j", "failed", error="x" * 900)
    job = records.get("j")
    assert job is not None
    assert len(job.error) == 500
    with pytest.raises(Conflict, match="has failed already"):
        JobQueue(sessions).cancel("j")
    with pytest.raises(NotFound):
        JobQueue(sessions).cancel("k")
