"""Measuring candidates on lab devices: who can, blobs, orders, and the predictor's points."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from cloud.api.auth import Operator, Viewer
from cloud.api.context import Context, ContextDep
from cloud.db.tables import LabBlob, LabOrder
from cloud.errors import NotFound, UserError
from cloud.lab import orders, predictions
from cloud.lab.assigning import OPEN_STATES
from cloud.lab.selecting import devices_on, why_not
from fleet.client.schemas import (
    LabBlobOut,
    LabDeviceOut,
    LabOrderIn,
    LabOrderOut,
    PredictorPointIn,
    PredictorPointOut,
)

router = APIRouter(prefix="/v1/lab")

Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


@router.get("/devices")
def lab_devices(
    on: Annotated[str, Query(description="device:ID or group:NAME", max_length=200)],
    context: ContextDep,
    _: Viewer,
) -> list[LabDeviceOut]:
    """The devices that are meant, each with why it cannot measure now, if it cannot."""
    with context.readers() as session:
        return [
            LabDeviceOut(
                id=row.id,
                profile=row.profile,
                problem=why_not(row),
                inventory=row.reported.get("inventory") or row.inventory,
            )
            for row in devices_on(session, on)
        ]


@router.get("/blobs/{sha256}")
def lab_blob(sha256: Sha256, context: ContextDep, _: Viewer) -> LabBlobOut:
    """Whether a blob is here already."""
    with context.readers() as session:
        row = session.get(LabBlob, sha256)
    if row is None:
        raise NotFound(f"no blob {sha256[:16]} of the lab")
    return LabBlobOut.model_validate(row, from_attributes=True)


@router.put("/blobs/{kind}")
async def upload(
    kind: Literal["bundle", "samples"], request: Request, context: ContextDep, caller: Operator
) -> LabBlobOut:
    """Store a packed bundle, or samples, for devices to fetch when they are ordered to."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > orders.MAX_LAB_BLOB_BYTES:
            raise UserError(f"it is larger than {orders.MAX_LAB_BLOB_BYTES >> 20} MiB")
    return await run_in_threadpool(_store, kind, bytes(data), context)


def _store(kind: Literal["bundle", "samples"], data: bytes, context: Context) -> LabBlobOut:
    profile = orders.profile_of_bundle(data) if kind == "bundle" else ""
    sha256 = hashlib.sha256(data).hexdigest()
    with context.readers() as session:
        row = session.get(LabBlob, sha256)
    if row is None:
        info = orders.encode_blob(context.services.blobs, data, kind)
        with context.writers.begin() as session:
            row = orders.keep_blob(session, sha256, kind, profile, len(data), info, context.clock())
    return LabBlobOut.model_validate(row, from_attributes=True)


@router.post("/orders", status_code=201)
def create_order(body: LabOrderIn, context: ContextDep, caller: Operator) -> LabOrderOut:
    """Order a measurement on one device; it is sent once the director has signed it."""
    with context.writers.begin() as session:
        row = orders.create_order(
            session,
            context.services.image_repository,
            body,
            caller.name,
            now=context.clock(),
        )
        return _out(row)


@router.get("/orders/{order_id}")
def show_order(order_id: str, context: ContextDep, _: Viewer) -> LabOrderOut:
    now = context.clock()
    with context.readers() as session:
        row = orders.find_order(session, order_id)
    if row.state in OPEN_STATES and row.expires_at <= now:
        with context.writers.begin() as session:
            orders.end_expired(session, now)
            row = orders.find_order(session, order_id)
    return _out(row)


@router.post("/orders/{order_id}/cancel")
def cancel_order(order_id: str, context: ContextDep, caller: Operator) -> LabOrderOut:
    """Take an order back; one that has ended stays as it is."""
    with context.writers.begin() as session:
        return _out(orders.cancel_order(session, order_id, caller.name, now=context.clock()))


@router.get("/points")
def points(
    context: ContextDep, _: Viewer, profile: Annotated[str, Query(max_length=64)] = ""
) -> list[PredictorPointOut]:
    """What devices of a profile took, beside what figures alone foretold; all profiles if empty."""
    with context.readers() as session:
        return _points(session, profile)


@router.post("/points", status_code=201)
def add_point(body: PredictorPointIn, context: ContextDep, caller: Operator) -> PredictorPointOut:
    """Let a device's result correct the predictor; once for each order."""
    with context.writers.begin() as session:
        row = predictions.add_point(session, body, now=context.clock())
        return PredictorPointOut.model_validate(row, from_attributes=True)


def _points(session: Session, profile: str) -> list[PredictorPointOut]:
    return [
        PredictorPointOut.model_validate(row, from_attributes=True)
        for row in predictions.points(session, profile)
    ]


def _out(row: LabOrder) -> LabOrderOut:
    return LabOrderOut(
        id=row.id,
        device=row.device,
        profile=row.profile,
        state=row.state,
        ended=row.state not in OPEN_STATES,
        detail=row.detail,
        result=row.result,
        created_at=row.created_at,
        expires_at=row.expires_at,
        updated_at=row.updated_at,
    )
