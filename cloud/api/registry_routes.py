"""Labels of many devices at once, by a query or from a table; and what became of a device."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from cloud.api.auth import Caller, Operator, Viewer
from cloud.api.context import Context, ContextDep
from cloud.api.device_routes import find_device
from cloud.devices import labels
from cloud.devices.history import history_of
from cloud.errors import UserError
from fleet.client.registry_schemas import HistoryOut, ImportOut, LabelsIn, LabelsOut
from fleet.devices.sheet import MAX_SHEET_BYTES, Form

router = APIRouter(prefix="/v1")


@router.post("/devices/labels")
def label_devices(request: LabelsIn, context: ContextDep, caller: Operator) -> LabelsOut:
    """Set and remove labels on every device that a query means."""
    with context.writers.begin() as session:
        return labels.label(session, request, caller.name, context.clock())


@router.put("/devices/import")
async def import_devices(
    request: Request, context: ContextDep, caller: Operator, form: Form, dry_run: bool = False
) -> ImportOut:
    """Take the labels of a table over, if all of its lines are right; else say which are not."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_SHEET_BYTES:
            raise UserError(f"the table is larger than {MAX_SHEET_BYTES >> 20} MiB")
    return await run_in_threadpool(_import, bytes(data), form, context, caller, dry_run)


def _import(data: bytes, form: Form, context: Context, caller: Caller, dry_run: bool) -> ImportOut:
    with context.writers.begin() as session:
        now = context.clock()
        return labels.import_sheet(session, data, form, caller.name, now, dry_run=dry_run)


@router.get("/devices/{device_id}/changes")
def device_changes(
    device_id: str,
    context: ContextDep,
    _: Viewer,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[HistoryOut]:
    """Presence, twin, labels and inventory of a device over time, newest first."""
    with context.readers() as session:
        find_device(session, device_id)
        rows = history_of(session, device_id, limit=limit)
        return [HistoryOut.model_validate(row, from_attributes=True) for row in rows]
