"""Devices, claims and enrolment."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import ValidationError
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import AssignmentEvent, Claim, Device, Inbox, Metric
from cloud.errors import Conflict, NotFound, UserError
from cloud.ingest.alarms import alarms_of
from cloud.orchestrator import together
from cloud.registry import audit
from edge_agent.wire.ids import is_slug
from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest, Inventory
from fleet.client.schemas import (
    LABEL_KEY_PATTERN,
    AssignedOut,
    ClaimIn,
    ClaimOut,
    DeviceDetail,
    DeviceOut,
    DevicePage,
    GroupIn,
    RowNumber,
)
from fleet.enrolment import claims
from fleet.enrolment.errors import ClaimRefused
from optimizer.detection import Traits, check
from optimizer.errors import OptimizerError
from optimizer.profiles import load_profile

log = logging.getLogger("skerry.api")

router = APIRouter(prefix="/v1")

CERTIFICATE_DAYS = 90
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
) -> DevicePage:
    query = select(Device)
    if search:
        pattern = "%" + search.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_") + "%"
        query = query.where(
            or_(Device.id.like(pattern, escape="\\"), Device.profile.like(pattern, escape="\\"))
        )
    if profile:
        query = query.where(Device.profile == profile)
    if online is not None:
        query = query.where(Device.online.is_(online))
    for pair in label or []:
        key, separator, value = pair.partition("=")
        # a key with a quote would break out of the path into the JSON column
        if not separator or not re.fullmatch(LABEL_KEY_PATTERN, key):
            raise UserError(f"label {pair!r} is not KEY=VALUE")
        query = query.where(Device.labels[key].as_string() == value)
    with context.readers() as session:
        total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
        rows = session.scalars(query.order_by(Device.id).offset(offset).limit(limit)).all()
        return DevicePage(total=total, offset=offset, items=[_device_out(row) for row in rows])


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
            profile_gaps=_gaps(row.profile, row.inventory),
            reported=row.reported,
            desired=row.desired,
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
        last_seen=row.last_seen,
        enrolled_at=row.enrolled_at,
        agent_version=reported.get("agent_version", ""),
        models=reported.get("models", {}),
    )


# ── claims ───────────────────────────────────────────────────────────────────────────────────────


@router.post("/claims", status_code=201)
def create_claims(request: ClaimIn, context: ContextDep, caller: Operator) -> list[ClaimFile]:
    """New claims.  Their secrets are in this answer and nowhere else."""
    load_profile(request.profile)
    services = context.services
    now = context.clock()
    made = [claims.new_claim() for _ in range(request.count)]
    with context.writers.begin() as session:
        session.add_all(
            Claim(
                id=fresh.claim_id,
                secret_sha256=fresh.secret_sha256,
                profile=request.profile,
                labels=request.labels,
                created_at=now,
                expires_at=now + request.ttl_s,
            )
            for fresh in made
        )
        # one entry for all: an entry each would hold the write lock for seconds at 10,000 claims
        audit.append(
            session,
            caller.name,
            "claim.created",
            made[0].claim_id if len(made) == 1 else f"{len(made)} claims",
            {"profile": request.profile, "claims": [fresh.claim_id for fresh in made]},
        )
    trusted = {
        "url": services.settings.api_url,
        "profile": request.profile,
        "ca_pem": services.authority.certificate_pem,
        "image_root": services.image_repository.root_json(),
        "director_root": services.director.root_json(),
    }
    return [
        ClaimFile.model_validate({**trusted, "claim_id": fresh.claim_id, "secret": fresh.secret})
        for fresh in made
    ]


@router.get("/claims")
def list_claims(context: ContextDep, _: Operator) -> list[ClaimOut]:
    with context.readers() as session:
        rows = session.scalars(select(Claim).order_by(Claim.created_at.desc()).limit(1000)).all()
        return [ClaimOut.model_validate(row, from_attributes=True) for row in rows]


@router.delete("/claims/{claim_id}", status_code=204)
def revoke_claim(claim_id: str, context: ContextDep, caller: Operator) -> None:
    with context.writers.begin() as session:
        row = session.get(Claim, claim_id, with_for_update=True)
        if row is None:
            raise NotFound(f"no claim {claim_id!r}")
        row.revoked = True
        audit.append(session, caller.name, "claim.revoked", claim_id, {})


# ── enrolment ────────────────────────────────────────────────────────────────────────────────────


@router.post("/enrol")
def enrol(request: EnrolRequest, context: ContextDep) -> EnrolReply:
    """Turn a claim and a certificate request into a device.  The claim is the authorisation."""
    services = context.services
    now = context.clock()
    with context.readers() as session:
        if session.get(Claim, request.claim_id) is None:
            # not into the audit: anybody could make it grow without end
            log.warning("enrol.refused reason=unknown_claim")
            raise ClaimRefused(f"enrolment refused: {claims.UNKNOWN}")
    with context.writers.begin() as session:
        claim = session.get_one(Claim, request.claim_id, with_for_update=True)
        refusal: ClaimRefused | None = None
        try:
            claims.check(
                claims.StoredClaim(
                    secret_sha256=claim.secret_sha256,
                    expires_at=claim.expires_at,
                    used_by=claim.used_by,
                    revoked=claim.revoked,
                ),
                request.secret,
                now,
            )
        except ClaimRefused as error:
            audit.append(
                session, "enrolment", "enrol.refused", request.claim_id, {"reason": str(error)}
            )
            refusal = error
        if refusal is None:
            device_id = request.name or f"d-{request.claim_id[:12]}"
            if not is_slug(device_id) or session.get(Device, device_id) is not None:
                raise Conflict(f"device name {device_id!r} is taken; choose another")
            certificate = services.authority.issue_device(
                request.csr_pem, device_id, days=CERTIFICATE_DAYS
            )
            claim.used_by = device_id
            session.add(
                Device(
                    id=device_id,
                    profile=claim.profile,
                    labels=claim.labels,
                    inventory=json.loads(request.inventory.model_dump_json()),
                    certificate_serial=certificate.serial,
                    certificate_expires_at=certificate.expires_at,
                    certificate_pem=certificate.pem,
                    enrolled_at=now,
                    reported={},
                    desired={},
                )
            )
            gaps = _gaps(claim.profile, request.inventory.model_dump())
            if gaps:
                log.warning(
                    "device.unlike_profile device=%s profile=%s lacks=%r",
                    device_id, claim.profile, gaps,
                )  # fmt: skip
            audit.append(
                session,
                f"device:{device_id}",
                "device.enrolled",
                device_id,
                {"claim": request.claim_id, "profile_gaps": [*gaps]},
            )
            return EnrolReply(
                device_id=device_id,
                certificate_pem=certificate.pem,
                ca_pem=services.authority.certificate_pem,
                broker_host=services.settings.host,
                broker_port=services.settings.broker_port,
            )
    # outside the transaction: the refusal's audit entry is kept
    raise ClaimRefused(f"enrolment refused: {refusal}")


def _gaps(profile: str, inventory: Mapping[str, Any]) -> list[str]:
    """What the rule of `profile` asks for and a device lacks; the claim decides nevertheless."""
    try:
        found = load_profile(profile)
        traits = Traits.of(Inventory.model_validate(inventory))
    except (OptimizerError, ValidationError):  # the file has changed since, or nothing was told
        return []
    if found.live or found.match is None:
        return []
    return list(check(traits, found, found.match).missing)
