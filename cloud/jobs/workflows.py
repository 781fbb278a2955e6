"""The durable workflows.  Their order of steps is a contract with the workflows under way.

DBOS records each step's result; after a crash the function runs again from its start, gets the
recorded results, and goes on at the first step that has none.  So a workflow only calls steps and
passes their results on.  When the order changes, `APPLICATION_VERSION` must too: a workflow of
another version is not resumed but ended as lost by the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from dbos import DBOS
from pydantic import JsonValue

from cloud.jobs.durable import run_step
from cloud.jobs.errors import JobCancelled, JobError, StepFailed
from cloud.jobs.members import train_members
from cloud.jobs.plan import Plan
from cloud.jobs.steps import Steps
from cloud.jobs.workplace import Workplace

log = logging.getLogger("skerry.jobs")

APPLICATION_VERSION: Final = "1"
WORKFLOW: Final = "skerry.job"
MAX_RECOVERIES: Final = 20
"""A job that takes its worker down this often is given up."""


def register_workflows(steps: Steps, place: Workplace) -> Callable[[str], None]:
    """Tell DBOS about the workflow; returns the function to enqueue, which takes the job's id."""

    def job(job_id: str) -> None:
        try:
            _make_candidate(steps, place, job_id)
        except JobCancelled:
            log.info("job.cancelled job=%s", job_id)
        except JobError as error:
            run_step("fail", place, job_id, place.records.end, job_id, "failed", error=str(error))
            log.warning("job.failed job=%s error=%s", job_id, error)
        run_step("clear", place, job_id, place.clear, job_id)

    registered: Callable[[str], None] = DBOS.workflow(
        name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES
    )(job)
    return registered


def _make_candidate(steps: Steps, place: Workplace, job_id: str) -> None:
    plan = Plan.model_validate(run_step("prepare", place, job_id, steps.prepare, job_id))
    data = run_step("dataset", place, job_id, steps.dataset, plan)
    dataset = str(data["dataset"])
    members = train_members(steps, place, plan, dataset)
    scores: dict[str, JsonValue] = {
        "dataset": dataset,
        "members": {member: answer["metrics"] for member, answer in members.trained.items()},
    }
    if members.notes:
        scores["notes"] = list(members.notes)
    run_step("scores", place, job_id, place.records.note, job_id, scores)
    exported = run_step(
        "export", place, job_id, steps.export, plan, dataset, members.checkpoints, members.bases
    )
    optimized = run_step(
        "optimize", place, job_id, steps.optimize, plan, dataset, exported, members
    )
    if optimized["failure"]:
        result = {
            **scores,
            "report_html": optimized["report_html_sha"],
            "report_json": optimized["report_json_sha"],
        }
        error = str(optimized["failure"])
        run_step(
            "unmet", place, job_id, place.records.end, job_id, "failed", error=error, result=result
        )
        raise StepFailed(error)
    judged = run_step("gates", place, job_id, steps.gates, plan, dataset, optimized)
    run_step("register", place, job_id, steps.register, plan, dataset, members, optimized, judged)
