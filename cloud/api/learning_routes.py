"""Projects, jobs, datasets, drift and what has been collected."""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.orm import InstrumentedAttribute

from cloud import datasets, drift, registry
from cloud import project as projects
from cloud.api.auth import Caller, Operator, Viewer
from cloud.api.context import Context, ContextDep
from cloud.db.tables import DriftReport, Job, Label, Project, Sample
from cloud.errors import NotFound, UserError
from cloud.registry import audit
from fleet.client.schemas import CollectionOut, DriftOut, JobIn, JobOut, ProjectOut

router = APIRouter(prefix="/v1")


@router.get("/projects")
def list_projects(context: ContextDep, _: Viewer) -> list[ProjectOut]:
    with context.readers() as session:
        rows = session.scalars(select(Project).order_by(Project.name)).all()
        return [ProjectOut.model_validate(row, from_attributes=True) for row in rows]


@router.get("/projects/{name}")
def show_project(name: str, context: ContextDep, _: Viewer) -> ProjectOut:
    with context.readers() as session:
        row = session.get(Project, name)
    if row is None:
        raise NotFound(f"no project {name!r}; upload one with 'skerry apply DIRECTORY'")
    return ProjectOut.model_validate(row, from_attributes=True)


@router.put("/projects/{name}")
async def apply_project(
    name: str, request: Request, context: ContextDep, caller: Operator
) -> ProjectOut:
    """Store a project's files (a tar made by `skerry apply`) as its newest state."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > projects.MAX_PROJECT_BYTES:
            raise UserError(f"project is larger than {projects.MAX_PROJECT_BYTES >> 20} MiB")
    # away from the event loop, where files, blobs and the write lock would hold up every caller
    return await run_in_threadpool(_store_project, name, bytes(data), context, caller)


def _store_project(name: str, data: bytes, context: Context, caller: Caller) -> ProjectOut:
    spec = projects.read_packed(data)
    if spec.name != name:
        raise UserError(f"skerry.yaml names the project {spec.name!r}, the address {name!r}")
    code_sha = context.services.blobs.put(data)
    with context.writers.begin() as session:
        row = session.get(Project, name)
        if row is None:
            row = Project(name=name)
            session.add(row)
        row.code_sha = code_sha
        row.spec = spec.model_dump(mode="json")
        row.applied_at = context.clock()
        audit.append(session, caller.name, "project.applied", name, {"code": code_sha})
    return ProjectOut.model_validate(row, from_attributes=True)


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────


@router.post("/jobs", status_code=201)
def start_job(body: JobIn, context: ContextDep, caller: Operator) -> JobOut:
    with context.readers() as session:
        if session.get(Project, body.project) is None:
            raise NotFound(f"no project {body.project!r}; upload one with 'skerry apply DIRECTORY'")
    job_id = context.jobs.enqueue(body.kind, body.project, body.params)
    with context.writers.begin() as session:
        audit.append(session, caller.name, "job.started", job_id, {"kind": body.kind})
    return show_job(job_id, context, caller)


@router.get("/jobs")
def list_jobs(context: ContextDep, _: Viewer) -> list[JobOut]:
    with context.readers() as session:
        rows = session.scalars(select(Job).order_by(Job.created_at.desc()).limit(200)).all()
        return [JobOut.model_validate(row, from_attributes=True) for row in rows]


@router.get("/jobs/{job_id}")
def show_job(job_id: str, context: ContextDep, _: Viewer) -> JobOut:
    with context.readers() as session:
        row = session.get(Job, job_id)
    if row is None:
        raise NotFound(f"no job {job_id!r}")
    return JobOut.model_validate(row, from_attributes=True)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, context: ContextDep, caller: Operator) -> JobOut:
    show_job(job_id, context, caller)
    context.jobs.cancel(job_id)
    with context.writers.begin() as session:
        audit.append(session, caller.name, "job.cancelled", job_id, {})
    return show_job(job_id, context, caller)


@router.get("/jobs/{job_id}/report")
def job_report(job_id: str, context: ContextDep, caller: Viewer) -> Response:
    """The optimizer's report with the frontier as a picture."""
    job = show_job(job_id, context, caller)
    sha = job.result.get("report_html")
    if not sha:
        raise NotFound(f"job {job_id} has no report (state {job.state})")
    return HTMLResponse(context.services.blobs.get(str(sha)))


@router.get("/jobs/{job_id}/report.json")
def job_report_json(job_id: str, context: ContextDep, caller: Viewer) -> Response:
    """The same facts for programs."""
    job = show_job(job_id, context, caller)
    sha = job.result.get("report_json")
    if not sha:
        raise NotFound(f"job {job_id} has no report (state {job.state})")
    return Response(context.services.blobs.get(str(sha)), media_type="application/json")


# ── datasets ─────────────────────────────────────────────────────────────────────────────────────


@router.get("/datasets/{dataset}/inputs")
def held_out_inputs(
    dataset: str,
    context: ContextDep,
    _: Operator,
    limit: Annotated[int, Query(ge=1, le=datasets.MAX_HELD_OUT_ROWS)] = 256,
) -> Response:
    """Inputs that were never trained on, as an `.npz` of one array per tensor."""
    with context.readers() as session:
        inputs = datasets.held_out(session, context.services.blobs, dataset, limit)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{f"input:{name}": each for name, each in inputs.items()})
    return Response(file.getvalue(), media_type="application/zip")


# ── drift and collection ─────────────────────────────────────────────────────────────────────────


@router.get("/drift")
def list_drift(
    context: ContextDep,
    _: Viewer,
    model: str = "",
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
) -> list[DriftOut]:
    query = select(DriftReport).order_by(DriftReport.id.desc()).limit(limit)
    if model:
        query = query.where(DriftReport.model == model)
    with context.readers() as session:
        rows = session.scalars(query).all()
        return [DriftOut.model_validate(row, from_attributes=True) for row in rows]


@router.post("/drift/check")
def run_drift_check(model: str, context: ContextDep, caller: Operator) -> list[DriftOut]:
    """Check `model`'s champion now instead of at the next turn of the schedule."""
    with context.readers() as session:
        champion = registry.champion(session, model)
        if champion is None:
            raise NotFound(f"model {model!r} has no champion yet")
        judged = drift.judge(
            session, context.services.blobs, model, champion.version, now=context.clock()
        )
    with context.writers.begin() as session:
        rows = drift.record(session, judged)
        audit.append(session, caller.name, "drift.checked", model, {"reports": len(rows)})
        return [DriftOut.model_validate(row, from_attributes=True) for row in rows]


@router.get("/collection")
def collection(context: ContextDep, _: Viewer, model: str = "") -> CollectionOut:
    """How much has come in, from where, of which class; of one model or of all."""
    of_model = Sample.model == model if model else true()

    with context.readers() as session:

        def counts(column: InstrumentedAttribute[str]) -> dict[str, int]:
            query = select(column, func.count()).where(of_model).group_by(column)
            return dict(iter(session.execute(query)))

        def samples(*conditions: ColumnElement[bool]) -> int:
            query = select(func.count()).select_from(Sample).where(of_model, *conditions)
            return session.scalar(query) or 0

        labelled = select(Label.prediction_id).distinct()
        return CollectionOut(
            total=samples(),
            by_policy=counts(Sample.policy),
            by_device=counts(Sample.device),
            by_predicted=counts(Sample.predicted),
            labelled=samples(Sample.prediction_id.in_(labelled)),
            corrections=session.scalar(
                select(func.count()).select_from(Label).where(Label.source == "correction")
            )
            or 0,
        )
