"""Claims and enrolment."""

from __future__ import annotations

import logging
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import JsonValue
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cloud.api.auth import Operator
from cloud.api.context import Context, ContextDep
from cloud.api.gaps import profile_gaps
from cloud.db.tables import Claim, Device
from cloud.enrolment import enrolling, revocation
from cloud.errors import Conflict, NotFound, UserError
from cloud.registry import audit
from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest
from fleet.client.enrolment_schemas import ClaimsRevoked, RevocationIn
from fleet.client.schemas import ClaimIn, ClaimOut, RowNumber
from fleet.enrolment import claims
from fleet.enrolment.errors import ClaimRefused, EnrolmentError, TooManyRefusals
from optimizer.profiles import load_profile

log = logging.getLogger("skerry.api")

router = APIRouter(prefix="/v1")


@router.post("/claims", status_code=201)
def create_claims(request: ClaimIn, context: ContextDep, caller: Operator) -> list[ClaimFile]:
    """New claims.  Their secrets are in this answer and nowhere else."""
    services = context.services
    now = context.clock()
    if request.device is not None and request.count != 1:
        raise UserError("a claim for one device is made once: leave out the count")
    made = [claims.new_claim() for _ in range(request.count)]
    with context.writers.begin() as session:
        profile = _profile_of(session, request)
        load_profile(profile)
        session.add_all(
            Claim(
                id=fresh.claim_id,
                secret_sha256=fresh.secret_sha256,
                profile=profile,
                labels=request.labels,
                created_at=now,
                expires_at=now + request.ttl_s,
                batch=request.batch or "",
                device=request.device or "",
            )
            for fresh in made
        )
        # one entry for all: an entry each would hold the write lock for seconds at 10,000 claims
        detail: dict[str, JsonValue] = {
            "profile": profile,
            "batch": request.batch or "",
            "device": request.device or "",
            "claims": [fresh.claim_id for fresh in made],
        }
        audit.append(
            session,
            caller.name,
            "claim.created",
            made[0].claim_id if len(made) == 1 else f"{len(made)} claims",
            detail,
        )
    trusted = {
        "url": services.settings.api_url,
        "profile": profile,
        "ca_pem": services.authority.certificate_pem,
        "image_root": services.image_repository.root_json(),
        "director_root": services.director.root_json(),
        "device": request.device,
    }
    return [
        ClaimFile.model_validate({**trusted, "claim_id": fresh.claim_id, "secret": fresh.secret})
        for fresh in made
    ]


def _profile_of(session: Session, request: ClaimIn) -> str:
    """The profile that new claims are bound to; a device that exists keeps its own.

    Raises:
        UserError: none is named.
        Conflict: another than the device's is.
    """
    row = session.get(Device, request.device) if request.device is not None else None
    if row is not None:
        if request.profile not in ("", row.profile):
            raise Conflict(f"device {row.id!r} has profile {row.profile!r}; leave the profile out")
        return row.profile
    if not request.profile:
        raise UserError("name the hardware profile that the claim is for")
    return request.profile


@router.get("/claims")
def list_claims(
    context: ContextDep,
    _: Operator,
    batch: str = "",
    offset: RowNumber = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> list[ClaimOut]:
    query = select(Claim).order_by(Claim.created_at.desc(), Claim.id)
    if batch:
        query = query.where(Claim.batch == batch)
    with context.readers() as session:
        rows = session.scalars(query.offset(offset).limit(limit)).all()
        return [ClaimOut.model_validate(row, from_attributes=True) for row in rows]


@router.delete("/claims/{claim_id}", status_code=204)
def revoke_claim(claim_id: str, context: ContextDep, caller: Operator) -> None:
    with context.writers.begin() as session:
        row = session.get(Claim, claim_id, with_for_update=True)
        if row is None:
            raise NotFound(f"no claim {claim_id!r}")
        row.revoked = True
        audit.append(session, caller.name, "claim.revoked", claim_id, {})


@router.delete("/claims")
def revoke_claims(
    batch: Annotated[str, Query(min_length=1)], context: ContextDep, caller: Operator
) -> ClaimsRevoked:
    """Revoke what is still open of a batch; devices that have enrolled stay."""
    with context.writers.begin() as session:
        in_batch = Claim.batch == batch
        if session.scalar(select(Claim.id).where(in_batch).limit(1)) is None:
            raise NotFound(f"no claims in a batch {batch!r}")
        open_ids = session.scalars(
            select(Claim.id).where(in_batch, Claim.revoked.is_(False), Claim.used_by.is_(None))
        ).all()
        session.execute(update(Claim).where(in_batch, Claim.used_by.is_(None)).values(revoked=True))
        detail: dict[str, JsonValue] = {"batch": batch, "claims": [*open_ids]}
        audit.append(session, caller.name, "claim.revoked", f"batch {batch}", detail)
    return ClaimsRevoked(revoked=len(open_ids))


@router.post("/devices/{device_id}/revoke", status_code=204)
def revoke_device(
    device_id: str, request: RevocationIn, context: ContextDep, caller: Operator
) -> None:
    """Take a device's identity away; its live session ends within seconds."""
    with context.writers.begin() as session:
        revocation.revoke_device(session, device_id, caller.name, request.reason, context.clock())


# ── enrolment ────────────────────────────────────────────────────────────────────────────────────


@router.post("/enrol")
def enrol(body: EnrolRequest, context: ContextDep, request: Request) -> EnrolReply:
    """Turn a claim and a certificate request into a device.  The claim is the authorisation."""
    services = context.services
    address = request.client.host if request.client is not None else ""
    wait_s = context.refusals.wait_s(address, time.monotonic())
    if wait_s > 0:
        log.warning("enrol.flood address=%s", address)
        raise TooManyRefusals(max(wait_s, 1.0))
    now = context.clock()
    try:
        with context.readers() as session:
            if session.get(Claim, body.claim_id) is None:
                # not into the audit, nor to the write lock: anybody could ask for it without end
                raise ClaimRefused(claims.UNKNOWN)
        with context.writers.begin() as session:
            enrolled = enrolling.enrol(
                session,
                services.authority,
                body,
                now,
                days=services.settings.certificate_days,
                gaps=profile_gaps,
            )
    except (EnrolmentError, Conflict) as error:
        context.refusals.count(address, time.monotonic())
        if str(error) != claims.UNKNOWN or _exists(context, body.claim_id):
            # in a transaction of its own: what was refused left nothing, but that it was
            with context.writers.begin() as session:
                enrolling.note_refusal(session, body.claim_id, str(error), now)
        if isinstance(error, ClaimRefused):
            raise ClaimRefused(f"enrolment refused: {error}") from error
        raise
    return EnrolReply(
        device_id=enrolled.device_id,
        certificate_pem=enrolled.certificate_pem,
        ca_pem=services.authority.certificate_pem,
        broker_host=services.settings.host,
        broker_port=services.settings.broker_port,
    )


def _exists(context: Context, claim_id: str) -> bool:
    with context.readers() as session:
        return session.get(Claim, claim_id) is not None
