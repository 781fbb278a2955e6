"""Rollouts, the overview, the audit and tokens."""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import func, select

from cloud import orchestrator
from cloud.api.auth import Admin, Operator, Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import (
    INGEST_HEARTBEAT,
    AuditEntry,
    Device,
    DriftReport,
    Job,
    ModelVersion,
    Rollout,
    Sample,
    Setting,
)
from cloud.errors import NotFound
from cloud.registry import audit
from cloud.services import new_token
from fleet.client.schemas import (
    AuditOut,
    Overview,
    RolloutDetail,
    RolloutIn,
    RolloutOut,
    RowNumber,
    TokenIn,
    TokenOut,
)

router = APIRouter(prefix="/v1")

HEARTBEAT_MAX_AGE_S = 20.0

Verb = Literal["approve", "pause", "resume", "cancel", "halt", "rollback"]


@router.get("/overview")
def overview(context: ContextDep, _: Viewer) -> Overview:
    with context.readers() as session:

        def count(*conditions: object, of: type) -> int:
            query = select(func.count()).select_from(of).where(*conditions)  # type: ignore[arg-type]
            return session.scalar(query) or 0

        newest = (
            select(func.max(DriftReport.id))
            .where(DriftReport.scope == "fleet")
            .group_by(DriftReport.model)
        )
        ingest = session.get(Setting, INGEST_HEARTBEAT)
        heard = ingest is not None and context.clock() - ingest.updated_at < HEARTBEAT_MAX_AGE_S
        return Overview(
            devices=count(of=Device),
            online=count(Device.online.is_(True), of=Device),
            models=session.scalar(select(func.count(func.distinct(ModelVersion.model)))) or 0,
            rollouts_running=count(Rollout.state == "RUNNING", of=Rollout),
            jobs_running=count(Job.state.in_(("queued", "running")), of=Job),
            drifting=count(
                DriftReport.id.in_(newest), DriftReport.verdict == "drift", of=DriftReport
            ),
            samples=count(of=Sample),
            broker_connected=bool(heard and ingest and ingest.value["connected"]),
            version=package_version("skerry"),
        )


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────────


@router.get("/rollouts")
def list_rollouts(context: ContextDep, _: Viewer) -> list[RolloutOut]:
    with context.readers() as session:
        rows = session.scalars(select(Rollout).order_by(Rollout.created_at.desc()).limit(200))
        return orchestrator.rollouts_out(session, rows.all())


@router.post("/rollouts", status_code=201)
def start_rollout(body: RolloutIn, context: ContextDep, caller: Operator) -> RolloutDetail:
    with context.writers.begin() as session:
        row = orchestrator.create_rollout(session, body, caller.name, now=context.clock())
        audit.append(
            session,
            caller.name,
            "rollout.created",
            row.id,
            {"model": body.model, "version": body.version},
        )
        session.flush()
        return orchestrator.rollout_detail(session, row)


@router.get("/rollouts/{rollout_id}")
def show_rollout(rollout_id: str, context: ContextDep, _: Viewer) -> RolloutDetail:
    with context.readers() as session:
        row = session.get(Rollout, rollout_id)
        if row is None:
            raise NotFound(f"no rollout {rollout_id!r}")
        return orchestrator.rollout_detail(session, row)


@router.post("/rollouts/{rollout_id}/{verb}")
def command_rollout(
    rollout_id: str, verb: Verb, context: ContextDep, caller: Operator
) -> RolloutDetail:
    with context.writers.begin() as session:
        row = orchestrator.command_rollout(
            session, rollout_id, verb, caller.name, now=context.clock()
        )
        audit.append(session, caller.name, f"rollout.{verb}", rollout_id, {})
        return orchestrator.rollout_detail(session, row)


# ── audit and tokens ─────────────────────────────────────────────────────────────────────────────


@router.get("/audit")
def list_audit(
    context: ContextDep,
    _: Viewer,
    offset: RowNumber = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[AuditOut]:
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).offset(offset).limit(limit)
    with context.readers() as session:
        rows = session.scalars(query).all()
        return [AuditOut.model_validate(row, from_attributes=True) for row in rows]


@router.post("/tokens", status_code=201)
def create_token(body: TokenIn, context: ContextDep, caller: Admin) -> TokenOut:
    with context.writers.begin() as session:
        token = new_token(session, body.name, body.role)
        audit.append(session, caller.name, "token.created", body.name, {"role": body.role})
    return TokenOut(name=body.name, role=body.role, token=token)
