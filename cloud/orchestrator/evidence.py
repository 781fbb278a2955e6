"""Signed evidence: why each wave of a rollout went on or not, so that nobody can say it otherwise.

Rules:
    * A decision is signed when it is made, over its canonical JSON (RFC 8785) by the evidence key.
    * It names the digest of the decision before it of the same rollout, so one that was changed,
      removed or put elsewhere breaks the chain from there on.
    * When a rollout stops or ends, the audit names the newest digest, so an end that was cut off is
      missed, too.

EvidenceBroken    naming the decision (operator)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import rfc8785
from securesystemslib.signer import Key
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import AuditEntry, GateDecision
from cloud.errors import OperatorError
from cloud.signing.evidence import EvidenceKey, signed_by
from fleet.client.evidence_schemas import DecisionOut, EvidenceOut
from fleet.rollouts.events import GateDecided

GENESIS: Final = "0" * 64

_SIGNED: Final = ("subject", "gate", "verdict", "reason", "evidence", "at", "previous")


class EvidenceBroken(OperatorError):
    """The evidence is not what was signed."""


def record(
    session: Session, key: EvidenceKey, rollout: str, decided: GateDecided, now: float
) -> None:
    """Store a decision, signed, in the session's transaction; the rollout's row is locked."""
    row = GateDecision(
        subject=f"rollout:{rollout}:wave:{decided.wave}",
        gate=decided.gate,
        verdict=decided.verdict,
        reason=decided.reason,
        evidence=dict(decided.evidence),
        at=now,
        previous=head(session, rollout),
        keyid=key.keyid,
    )
    content = _content({name: getattr(row, name) for name in _SIGNED})
    row.sha256 = hashlib.sha256(content).hexdigest()
    row.signature = key.sign(content)
    session.add(row)
    session.flush()


def head(session: Session, rollout: str) -> str:
    """Digest of the rollout's newest decision; `GENESIS` when none was signed."""
    newest = session.scalar(
        select(GateDecision.sha256)
        .where(GateDecision.subject.startswith(f"rollout:{rollout}:", autoescape=True))
        .order_by(GateDecision.id.desc())
        .limit(1)
    )
    return newest or GENESIS


def evidence_of(session: Session, rollout: str) -> EvidenceOut:
    """The decisions of a rollout, and what the audit says of them."""
    rows = session.scalars(
        select(GateDecision)
        .where(GateDecision.subject.startswith(f"rollout:{rollout}:", autoescape=True))
        .order_by(GateDecision.id)
    )
    entries = session.scalars(
        select(AuditEntry)
        .where(AuditEntry.subject == rollout, AuditEntry.action.startswith("rollout."))
        .order_by(AuditEntry.id)
    )
    return EvidenceOut(
        rollout=rollout,
        decisions=[DecisionOut.model_validate(row, from_attributes=True) for row in rows],
        audited=[str(each.detail["evidence"]) for each in entries if "evidence" in each.detail],
    )


def verify(found: EvidenceOut, keys: Mapping[str, Key]) -> int:
    """Check chain and signatures against keys that the caller trusts.

    Returns:
        How many decisions were signed; those of before are passed over.

    Raises:
        EvidenceBroken: naming the first decision that is not what was signed.
    """
    previous = GENESIS
    known = {GENESIS}
    signed = 0
    for number, each in enumerate(found.decisions, start=1):
        where = f"rollout {found.rollout}, decision {number} ({each.gate})"
        if not each.keyid and not signed:
            continue
        content = _content(each.model_dump(mode="json", include=set(_SIGNED)))
        if not each.subject.startswith(f"rollout:{found.rollout}:"):
            raise EvidenceBroken(f"{where}: is of {each.subject}")
        if each.previous != previous:
            raise EvidenceBroken(f"{where}: does not follow the decision before it")
        if hashlib.sha256(content).hexdigest() != each.sha256:
            raise EvidenceBroken(f"{where}: does not match its digest")
        key = keys.get(each.keyid)
        if key is None:
            raise EvidenceBroken(f"{where}: signed by {each.keyid[:12]!r}, which is not trusted")
        if not signed_by(key, content, each.signature):
            raise EvidenceBroken(f"{where}: the signature is wrong")
        previous = each.sha256
        known.add(previous)
        signed += 1
    for digest in found.audited:
        if digest not in known:
            raise EvidenceBroken(
                f"rollout {found.rollout}: the audit names decision {digest[:12]}, which is missing"
            )
    return signed


def _content(fields: Mapping[str, object]) -> bytes:
    return rfc8785.dumps(dict(fields))  # type: ignore[arg-type]
