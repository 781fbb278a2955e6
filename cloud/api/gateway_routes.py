"""Gateways: an enrolled device that speaks for others (docs/adr/0012)."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import JsonValue
from sqlalchemy import func, select

from cloud.api.auth import Operator
from cloud.api.context import ContextDep
from cloud.api.device_routes import find_device
from cloud.db.tables import Device
from cloud.errors import Conflict
from cloud.registry import audit
from fleet.client.gateway_schemas import BelowIn, BelowOut
from fleet.enrolment.ca import RESERVED_NAMES
from optimizer.profiles import load_profile

router = APIRouter(prefix="/v1")


@router.post("/gateways/{gateway}/devices", status_code=201)
def register_below(
    gateway: str, request: BelowIn, context: ContextDep, caller: Operator
) -> BelowOut:
    """Register devices that `gateway` speaks for.  They have no certificate of their own."""
    load_profile(request.profile)
    names = sorted(set(request.devices))
    if reserved := RESERVED_NAMES.intersection(names):
        raise Conflict(f"{min(reserved)!r} cannot be the name of a device")
    now = context.clock()
    with context.writers.begin() as session:
        row = find_device(session, gateway)
        if row.gateway or row.revoked:
            why = f"is below {row.gateway!r}" if row.gateway else "is revoked"
            raise Conflict(f"{gateway!r} {why} and can speak for nobody")
        rows = session.execute(select(Device.id, Device.gateway).where(Device.id.in_(names)))
        known = {each.id: each.gateway for each in rows}
        taken = [name for name, speaker in known.items() if speaker != gateway]
        if taken:
            raise Conflict(f"device name {min(taken)!r} is taken; choose another")
        fresh = [name for name in names if name not in known]
        session.add_all(
            Device(
                id=name,
                profile=request.profile,
                labels=request.labels,
                inventory={},
                certificate_serial="",
                certificate_expires_at=row.certificate_expires_at,
                enrolled_at=now,
                gateway=gateway,
                reported={},
                desired={},
            )
            for name in fresh
        )
        if fresh:
            detail: dict[str, JsonValue] = {"profile": request.profile, "devices": [*fresh]}
            audit.append(session, caller.name, "gateway.devices_registered", gateway, detail)
        session.flush()
        total = session.scalar(
            select(func.count()).select_from(Device).where(Device.gateway == gateway)
        )
        return BelowOut(registered=len(fresh), total=total or 0)
