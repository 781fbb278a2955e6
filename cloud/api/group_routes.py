"""Groups of devices."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import DeviceGroup
from cloud.devices import groups
from fleet.client.registry_schemas import (
    DeviceGroupChange,
    DeviceGroupIn,
    DeviceGroupOut,
    MembersIn,
)

router = APIRouter(prefix="/v1")

MAX_SHOWN = 1000


@router.get("/groups")
def list_groups(context: ContextDep, _: Viewer) -> list[DeviceGroupOut]:
    with context.readers() as session:
        rows = session.scalars(select(DeviceGroup).order_by(DeviceGroup.name).limit(MAX_SHOWN))
        return [groups.shown(session, row, context.clock()) for row in rows.all()]


@router.post("/groups", status_code=201)
def create_group(request: DeviceGroupIn, context: ContextDep, caller: Operator) -> DeviceGroupOut:
    now = context.clock()
    with context.writers.begin() as session:
        row = groups.create(session, request, caller.name, now)
        return groups.shown(session, row, now)


@router.get("/groups/{name}")
def show_group(name: str, context: ContextDep, _: Viewer) -> DeviceGroupOut:
    with context.readers() as session:
        return groups.shown(session, groups.find(session, name), context.clock())


@router.patch("/groups/{name}")
def change_group(
    name: str, request: DeviceGroupChange, context: ContextDep, caller: Operator
) -> DeviceGroupOut:
    now = context.clock()
    with context.writers.begin() as session:
        row = groups.change(session, name, request, caller.name, now)
        return groups.shown(session, row, now)


@router.delete("/groups/{name}", status_code=204)
def delete_group(name: str, context: ContextDep, caller: Operator) -> None:
    with context.writers.begin() as session:
        groups.remove(session, name, caller.name, context.clock())


@router.post("/groups/{name}/members")
def change_members(
    name: str, request: MembersIn, context: ContextDep, caller: Operator
) -> DeviceGroupOut:
    now = context.clock()
    with context.writers.begin() as session:
        row = groups.change_members(session, name, request.add, request.remove, caller.name, now)
        return groups.shown(session, row, now)
