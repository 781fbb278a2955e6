"""The registry of devices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.api.gaps import profile_gaps
from cloud.db.tables import AssignmentEvent, Device, Inbox, Metric
from cloud.devices.history import history_of
from cloud.devices.listing import Wanted, page
from cloud.errors import NotFound
from cloud.ingest.alarms import alarms_of
from cloud.orchestrator import together
from fleet.client.schemas import (
    AssignedOut,
    DeviceDetail,
    DeviceOut,
    DevicePage,
    GroupIn,
    RowNumber,
)

router = APIRouter(prefix="/v1")

HISTORY_ROWS = 50


@router.get("/devices")
def list_devices(
    context: ContextDep,
    _: Viewer,
    offset: RowNumber = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    search: str = "",
    label: Annotated[list[str] | None, Query(description="KEY=VALUE; all must hold")] = None,
    profile: str = "",
    online: bool | None = None,
    query: Annotated[str, Query(description="In the language of docs/guides/fleet.md")] = "",
) -> DevicePage:
    wanted = Wanted(search=search, labels=label or [], profile=profile, online=online, query=query)
    with context.readers() as session:
        return page(session, wanted, context.clock(), offset=offset, limit=limit)


@router.get("/devices/{device_id}")
def show_device(device_id: str, context: ContextDep, _: Viewer) -> DeviceDetail:
    with context.readers() as session:
        row = find_device(session, device_id)
        events = session.scalars(
            select(AssignmentEvent)
            .where(AssignmentEvent.device == device_id)
            .order_by(AssignmentEvent.id.desc())
            .limit(HISTORY_ROWS)
        ).all()
        metrics = session.scalars(
            select(Metric)
            .where(Metric.device == device_id)
            .order_by(Metric.id.desc())
            .limit(HISTORY_ROWS)
        ).all()
        return DeviceDetail(
            **_device_out(row).model_dump(),
            inventory=row.inventory,
            profile_gaps=profile_gaps(row.profile, row.inventory),
            reported=row.reported,
            desired=row.desired,
            desired_version=row.desired_version,
            changes=[
                {"kind": each.kind, "at": each.at, "detail": each.detail}
                for each in history_of(session, device_id, limit=HISTORY_ROWS)
            ],
            certificate_expires_at=row.certificate_expires_at,
            history=[{"at": event.at, **event.report} for event in events],
            metrics=[{"at": metric.at, **metric.report} for metric in metrics],
            uplink=[
                {"stream": stream, "received": received, "last_seq": last_seq}
                for stream, received, last_seq in session.execute(
                    select(Inbox.stream, func.count(), func.max(Inbox.seq))
                    .where(Inbox.device == device_id)
                    .group_by(Inbox.stream)
                )
            ],
            alarms=[
                {"at": entry.at, "action": entry.action, "detail": entry.detail}
                for entry in alarms_of(session, device_id)
            ],
        )


@router.post("/devices/{device_id}/assignments", status_code=201)
def assign_together(
    device_id: str, request: GroupIn, context: ContextDep, caller: Operator
) -> list[AssignedOut]:
    """Have a device install versions of several models, all or none."""
    with context.writers.begin() as session:
        wanted = together.assign_together(
            session,
            device_id,
            request.versions,
            caller.name,
            probation_s=request.probation_s,
            now=context.clock(),
        )
        return [
            AssignedOut(
                model=model,
                version=want.version,
                target=want.target,
                generation=want.generation,
                group=want.group or "",
            )
            for model, want in wanted.items()
        ]


def find_device(session: Session, device_id: str) -> Device:
    row = session.get(Device, device_id)
    if row is None:
        raise NotFound(f"no device {device_id!r}")
    return row


def _device_out(row: Device) -> DeviceOut:
    reported: dict[str, Any] = row.reported or {}
    return DeviceOut(
        id=row.id,
        profile=row.profile,
        labels=row.labels,
        online=row.online,
        revoked=row.revoked,
        revoked_reason=row.revoked_reason,
        last_seen=row.last_seen,
        enrolled_at=row.enrolled_at,
        agent_version=reported.get("agent_version", ""),
        models=reported.get("models", {}),
    )
