"""The overview, the audit and tokens."""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import func, select

from cloud.api.auth import Admin, Viewer
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
from cloud.registry import audit
from cloud.services import new_token
from fleet.client.schemas import (
    AuditOut,
    Overview,
    RowNumber,
    TokenIn,
    TokenOut,
)

router = APIRouter(prefix="/v1")

HEARTBEAT_MAX_AGE_S = 20.0


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
