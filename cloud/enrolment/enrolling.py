"""A claim and a certificate request become a device, or let a known one come back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cloud.db.tables import Certificate, Claim, Device, Outbox
from cloud.enrolment import ledger
from cloud.errors import Conflict
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.ids import is_slug
from edge_agent.wire.messages import Desired, EnrolRequest
from fleet.enrolment import claims
from fleet.enrolment.ca import CertificateAuthority, key_digest, requested_key
from fleet.enrolment.errors import BadCertificateRequest, ClaimRefused

log = logging.getLogger("skerry.enrolment")

AUDITED_REFUSALS: Final = 20
"""Refusals of one claim that are audited; what comes after them is logged."""

Gaps = Callable[[str, dict[str, object]], list[str]]
"""What a device of this profile, with this inventory, lacks."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    device_id: str
    certificate_pem: str


def enrol(
    session: Session,
    authority: CertificateAuthority,
    request: EnrolRequest,
    now: float,
    *,
    days: float,
    gaps: Gaps,
) -> Enrolled:
    """Use the claim that `request` names, in the session's transaction.

    Args:
        now: seconds since the epoch.
        days: life of the certificate.

    Raises:
        ClaimRefused: the claim gives no right to this.
        BadCertificateRequest, ReservedName: what the device asks for is not signed.
        Conflict: its name is taken.
    """
    claim = session.get(Claim, request.claim_id, with_for_update=True)
    if claim is None:
        raise ClaimRefused(claims.UNKNOWN)
    try:
        key_sha256 = key_digest(requested_key(request.csr_pem))
        broken: BadCertificateRequest | None = None
    except BadCertificateRequest as error:  # told to who knows the secret alone
        key_sha256, broken = "", error
    grant = claims.check(
        claims.StoredClaim(
            secret_sha256=claim.secret_sha256,
            expires_at=claim.expires_at,
            used_by=claim.used_by,
            revoked=claim.revoked,
            profile=claim.profile,
            device=claim.device,
            key_sha256=claim.key_sha256,
        ),
        request.secret,
        now,
        profile=request.profile,
        name=request.name,
        key_sha256=key_sha256,
    )
    if broken is not None:
        raise broken
    if grant is claims.Grant.AGAIN:
        return _again(session, claim)
    device_id = claim.device or request.name or f"d-{request.claim_id[:12]}"
    row = session.get(Device, device_id, with_for_update=True)
    if not is_slug(device_id) or (row is not None and not claim.device):
        raise Conflict(
            f"device name {device_id!r} is taken; choose another, or let that device come back "
            f"by a claim made for it (--device {device_id})"
        )
    issued = authority.issue_device(request.csr_pem, device_id, days=days)
    claim.used_by = device_id
    claim.key_sha256 = key_sha256
    inventory = json.loads(request.inventory.model_dump_json())
    action = "device.enrolled" if row is None else "device.readmitted"
    if row is None:
        row = Device(
            id=device_id, profile=claim.profile, labels=claim.labels, reported={}, desired={}
        )
        session.add(row)
    else:
        ledger.revoke_all(session, device_id, ledger.REPLACED, now)
        _offer_twin(session, row, now)
        row.labels = {**row.labels, **claim.labels}
    row.inventory = inventory
    row.certificate_serial = issued.serial
    row.certificate_expires_at = issued.expires_at
    row.certificate_pem = issued.pem
    row.enrolled_at = now
    row.revoked, row.revoked_reason = False, ""
    row.online = False
    ledger.enter(session, issued, device_id, now)
    try:
        session.flush()
    except IntegrityError as error:  # another took the name a moment ago
        raise Conflict(f"device name {device_id!r} is taken; choose another") from error
    lacks = gaps(row.profile, inventory)
    if lacks:
        log.warning(
            "device.unlike_profile device=%s profile=%s lacks=%r", device_id, row.profile, lacks
        )
    audit.append(
        session,
        f"device:{device_id}",
        action,
        device_id,
        {"claim": claim.id, "profile_gaps": [*lacks], "serial": issued.serial},
        at=now,
    )
    return Enrolled(device_id, issued.pem)


def note_refusal(session: Session, claim_id: str, reason: str, now: float) -> None:
    """Keep that the holder of a known claim was refused; bounded, see `AUDITED_REFUSALS`."""
    log.warning("enrol.refused claim=%s reason=%s", claim_id, reason)
    claim = session.get(Claim, claim_id, with_for_update=True)
    if claim is None or claim.refusals >= AUDITED_REFUSALS:
        return
    claim.refusals += 1
    detail: dict[str, JsonValue] = {"reason": reason, "refusals": claim.refusals}
    audit.append(session, "enrolment", "enrol.refused", claim_id, detail, at=now)


def _again(session: Session, claim: Claim) -> Enrolled:
    """The certificate that the claim was used for: its answer was lost."""
    device_id = claim.used_by or ""
    row = session.get(Device, device_id)
    if row is None or row.revoked:
        raise ClaimRefused("the device that the claim was used for is revoked")
    pem = session.scalar(
        select(Certificate.pem)
        .where(
            Certificate.device == device_id,
            Certificate.key_sha256 == claim.key_sha256,
            Certificate.revoked_at.is_(None),
        )
        .order_by(Certificate.issued_at.desc())
    )
    if not pem:
        raise ClaimRefused("the certificate that the claim was used for counts no more")
    log.info("enrol.answered_again device=%s", device_id)
    return Enrolled(device_id, pem)


def _offer_twin(session: Session, row: Device, now: float) -> None:
    """What the device is to run: it was taken off the broker when the device was revoked."""
    twin = Desired.model_validate({"version": row.desired_version, **(row.desired or {})})
    if twin.models:
        session.add(
            Outbox(
                topic=topics.of(row.id, "desired", row.gateway),
                payload=twin.encode(),
                retain=True,
                created_at=now,
                published_at=None,
            )
        )
