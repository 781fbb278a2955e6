"""One durable step of a workflow, and what becomes of its errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, ParamSpec, cast

from dbos import DBOS

from cloud.errors import SkerryError
from cloud.jobs.cache import Result
from cloud.jobs.errors import JobCancelled, JobError, StepFailed
from cloud.jobs.workplace import Workplace
from cloud.registry.errors import RegistryError
from optimizer.errors import OptimizerError

log = logging.getLogger("skerry.jobs")

P = ParamSpec("P")

Run = Callable[..., Result]
"""`run_step`, or what takes its place."""

_SPEAKING: Final = (SkerryError, RegistryError, OptimizerError)
"""Errors whose text is meant for people."""


def run_step(
    name: str,
    place: Workplace,
    job_id: str,
    function: Callable[P, object],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """Run one durable step; every exception becomes a `JobError` of one line."""

    def guarded() -> Result:
        return plain_step(name, place, job_id, function, *args, **kwargs)

    result: Result = DBOS.run_step({"name": name}, guarded)
    return result


def plain_step(
    name: str,
    place: Workplace,
    job_id: str,
    function: Callable[P, object],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """The same without a workflow around it: nothing is recorded."""
    if name not in ("fail", "clear") and not place.records.is_open(job_id):
        raise JobCancelled("cancelled")
    try:
        return cast(Result, function(*args, **kwargs))
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
