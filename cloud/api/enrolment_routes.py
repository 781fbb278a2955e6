"""Claims and enrolment."""

from __future__ import annotations

import json
import logging

from fastapi import APIRouter
from sqlalchemy import select

from cloud.api.auth import Operator
from cloud.api.context import ContextDep
from cloud.api.gaps import profile_gaps
from cloud.db.tables import Claim, Device
from cloud.errors import Conflict, NotFound
from cloud.registry import audit
from edge_agent.wire.ids import is_slug
from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest
from fleet.client.schemas import ClaimIn, ClaimOut
from fleet.enrolment import claims
from fleet.enrolment.errors import ClaimRefused
from optimizer.profiles import load_profile

log = logging.getLogger("skerry.api")

router = APIRouter(prefix="/v1")

CERTIFICATE_DAYS = 90


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
            gaps = profile_gaps(claim.profile, request.inventory.model_dump())
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
