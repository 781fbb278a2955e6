"""What the director signs for a device that is to measure."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import LabBlob, LabOrder
from cloud.signing import LabAssignment
from edge_agent.wire.lab import LabInfo, LabKind, LabTarget, lab_target

OPEN_STATES: Final = ("sent", "accepted", "downloading", "measuring")
"""States of an order that a device may still work on."""


def open_orders(session: Session, device: str = "") -> list[LabOrder]:
    """Orders that have not ended, of one device or of all, oldest first."""
    query = select(LabOrder).where(LabOrder.state.in_(OPEN_STATES)).order_by(LabOrder.created_at)
    if device:
        query = query.where(LabOrder.device == device)
    return list(session.scalars(query))


def lab_assignments(session: Session, device: str) -> list[LabAssignment]:
    """Every blob that the device's open orders name, with the digests of those orders."""
    orders: dict[str, list[str]] = {}
    for order in open_orders(session, device):
        for sha256 in order.blobs:
            orders.setdefault(sha256, []).append(order.order_sha256)
    return [
        LabAssignment(target_of(row), LabInfo.model_validate(row.info), tuple(orders[row.sha256]))
        for row in _rows(session, orders)
    ]


def named_candidates(session: Session) -> dict[str, tuple[LabTarget, LabInfo]]:
    """What the image repository's lab role is to name: the blobs of all open orders."""
    wanted = {sha256 for order in open_orders(session) for sha256 in order.blobs}
    return {
        target_of(row).target: (target_of(row), LabInfo.model_validate(row.info))
        for row in _rows(session, wanted)
    }


def target_of(row: LabBlob) -> LabTarget:
    kind: LabKind = "bundle" if row.kind == "bundle" else "samples"
    return LabTarget(target=lab_target(kind, row.sha256), sha256=row.sha256, length=row.length)


def _rows(session: Session, sha256s: dict[str, list[str]] | set[str]) -> list[LabBlob]:
    query = select(LabBlob).where(LabBlob.sha256.in_(list(sha256s))).order_by(LabBlob.sha256)
    return list(session.scalars(query))
