"""A project's search: data, training and export by the steps of a build, then the search itself.

The steps keep their results in a database of their own below OUT/cache, so a member is trained once
for as long as its code, data and settings stay the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from cloud.blobs import Blobs
from cloud.db.engine import Sessions, open_sessions
from cloud.db.tables import Job
from cloud.db.tables import Project as ProjectRow
from cloud.jobs.cache import StepCache
from cloud.jobs.durable import plain_step
from cloud.jobs.errors import JobError
from cloud.jobs.executors import Progress
from cloud.jobs.members import train_members
from cloud.jobs.optimized import search
from cloud.jobs.plan import Plan
from cloud.jobs.records import JobRecords
from cloud.jobs.steps import Steps
from cloud.jobs.workplace import Workplace
from cloud.project import Project, pack_project
from cloud.standalone.output_directory import Output
from cloud.standalone.searching import Wishes, as_told, executor, lab_of
from optimizer.task import OptimizeResult

_JOB: Final = "optimize"


class _ShownRecords(JobRecords):
    """Records whose progress somebody watches."""

    def __init__(self, sessions: Sessions, shown: Progress) -> None:
        super().__init__(sessions)
        self._shown = shown

    def progress(self, job_id: str, step: str, share: float) -> None:
        self._shown(share, step)
        super().progress(job_id, step, share)


def search_project(
    directory: Path, project: Project, wishes: Wishes, output: Output, progress: Progress
) -> OptimizeResult:
    """The best variants of a project's family.

    Raises:
        UserError: project, data or search say what is wrong.
        OperatorError: a process died.
    """
    output.clear()
    sessions = open_sessions(f"sqlite:///{output.cache / 'steps.db'}")
    blobs = Blobs((output.cache / "blobs").as_uri())
    records = _ShownRecords(sessions, progress)
    place = Workplace(output.cache, records, blobs, executor(output))
    steps = Steps(sessions, place, StepCache(sessions, blobs))
    _enter(sessions, records, project, blobs.put(pack_project(directory)))
    try:
        return _search(steps, place, wishes, output)
    except JobError as error:
        raise as_told(error, output) from error
    finally:
        place.clear(_JOB)


def _search(steps: Steps, place: Workplace, wishes: Wishes, output: Output) -> OptimizeResult:
    prepared = plain_step("prepare", place, _JOB, steps.prepare, _JOB)
    plan = Plan.model_validate(prepared).model_copy(update={"version": 1})
    dataset = str(plain_step("dataset", place, _JOB, steps.dataset, plan)["dataset"])
    members = train_members(steps, place, plan, dataset, plain_step)
    exported = plain_step(
        "export", place, _JOB, steps.export, plan, dataset, members.checkpoints, members.bases
    )
    desk, rows = steps.open_search(plan, dataset)
    with lab_of(wishes, output) as lab:
        told = {**_request(wishes, output, desk.project), "lab": lab}
        return search(desk, plan, rows, exported, members, {}, told)


def _request(wishes: Wishes, output: Output, project: Project) -> dict[str, JsonValue]:
    """What the search is told beside the project's own words."""
    return {
        "out": str(output.root),
        "quick": project.measure.quick if wishes.quick is None else wishes.quick,
        "wishes": {
            "profiles": list(wishes.profiles),
            "recipes": [step.model_dump(mode="json") for step in wishes.recipes],
            "exhaustive": wishes.exhaustive,
            "time_limit_s": wishes.time_limit_s,
        },
    }


def _enter(sessions: Sessions, records: JobRecords, project: Project, code_sha: str) -> None:
    """The rows that the steps look at."""
    with sessions.begin() as session:
        spec = project.model_dump(mode="json")
        session.merge(
            ProjectRow(name=project.name, code_sha=code_sha, spec=spec, applied_at=time.time())
        )
        if (earlier := session.get(Job, _JOB)) is not None:
            session.delete(earlier)
    records.add(_JOB, "build", project.name, {})
