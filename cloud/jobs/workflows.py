"""The durable workflows.  Their order of steps is a contract with the workflows under way.

DBOS records each step's result; after a crash the function runs again from its start, gets the
recorded results, and goes on at the first step that has none.  So a workflow only calls steps and
passes their results on.  When the order changes, `APPLICATION_VERSION` must too: a workflow of
another version is not resumed but ended as lost by the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, ParamSpec

from dbos import DBOS
from pydantic import JsonValue

from cloud.errors import SkerryError
from cloud.jobs.cache import Result
from cloud.jobs.errors import JobCancelled, JobError, StepFailed
from cloud.jobs.plan import Plan
from cloud.jobs.steps import Steps
from cloud.jobs.workplace import Workplace
from cloud.registry.errors import RegistryError
from optimizer.errors import OptimizerError

log = logging.getLogger("skerry.jobs")

APPLICATION_VERSION: Final = "1"
WORKFLOW: Final = "skerry.job"
MAX_RECOVERIES: Final = 20
"""A job that takes its worker down this often is given up."""

P = ParamSpec("P")

_SPEAKING = (SkerryError, RegistryError, OptimizerError)
"""Errors whose text is meant for people."""


def register_workflows(steps: Steps, place: Workplace) -> Callable[[str], None]:
    """Tell DBOS about the workflow; returns the function to enqueue, which takes the job's id."""

    def job(job_id: str) -> None:
        try:
            _make_candidate(steps, place, job_id)
        except JobCancelled:
            log.info("job.cancelled job=%s", job_id)
        except JobError as error:
            _step("fail", place, job_id, place.records.end, job_id, "failed", error=str(error))
            log.warning("job.failed job=%s error=%s", job_id, error)
        _step("clear", place, job_id, place.clear, job_id)

    registered: Callable[[str], None] = DBOS.workflow(
        name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES
    )(job)
    return registered


def _make_candidate(steps: Steps, place: Workplace, job_id: str) -> None:
    plan = Plan.model_validate(_step("prepare", place, job_id, steps.prepare, job_id))
    data = _step("dataset", place, job_id, steps.dataset, plan)
    dataset = str(data["dataset"])
    trained = {
        member: _step(f"train:{member}", place, job_id, steps.train, plan, dataset, member)
        for member in plan.members
    }
    checkpoints = {member: str(answer["checkpoint_sha"]) for member, answer in trained.items()}
    scores: dict[str, JsonValue] = {
        "dataset": dataset,
        "members": {member: answer["metrics"] for member, answer in trained.items()},
    }
    _step("scores", place, job_id, place.records.note, job_id, scores)
    exported = _step("export", place, job_id, steps.export, plan, dataset, checkpoints)
    optimized = _step("optimize", place, job_id, steps.optimize, plan, dataset, exported)
    if optimized["failure"]:
        result = {
            **scores,
            "report_html": optimized["report_html_sha"],
            "report_json": optimized["report_json_sha"],
        }
        error = str(optimized["failure"])
        _step(
            "unmet", place, job_id, place.records.end, job_id, "failed", error=error, result=result
        )
        raise StepFailed(error)
    judged = _step("gates", place, job_id, steps.gates, plan, dataset, optimized)
    _step("register", place, job_id, steps.register, plan, dataset, trained, optimized, judged)


def _step(
    name: str,
    place: Workplace,
    job_id: str,
    function: Callable[P, object],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """Run one durable step; every exception becomes a `JobError` of one line."""

    def guarded() -> object:
        if name not in ("fail", "clear") and not place.records.is_open(job_id):
            raise JobCancelled("cancelled")
        try:
            return function(*args, **kwargs)
        except JobError:
            raise
        except _SPEAKING as error:
            place.note_traceback(job_id)
            raise StepFailed(" ".join(str(error).split())) from error
        except Exception as error:
            place.note_traceback(job_id)
            log.exception("job.step_broke job=%s step=%s", job_id, name)
            text = " ".join(str(error).split())
            raise StepFailed(f"step {name}: {type(error).__name__}: {text}") from error

    result: Result = DBOS.run_step({"name": name}, guarded)
    return result
