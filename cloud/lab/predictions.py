"""The predictor's points: every device result beside what figures alone foretold of it.

The measured latency is taken from the verified result of the order, never from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import LabOrder, PredictorPoint
from cloud.errors import Conflict, NotFound
from edge_agent.measure import Measurement
from fleet.client.schemas import PredictorPointIn

MAX_POINTS: Final = 5000
"""Newest ones that a predictor is fitted through."""


def add_point(session: Session, request: PredictorPointIn, *, now: float) -> PredictorPoint:
    """Append what an order's result says of a prediction; the same order again adds nothing.

    Raises:
        NotFound: there is no such order.
        Conflict: it gave no latency.
    """
    order = session.get(LabOrder, request.order)
    if order is None:
        raise NotFound(f"no measure order {request.order!r}")
    measured_ms = latency_of(order)
    if measured_ms is None:
        raise Conflict(f"order {order.id} gave no latency (state {order.state})")
    known = session.scalar(
        select(PredictorPoint).where(
            PredictorPoint.device == order.device,
            PredictorPoint.at == order.updated_at,
            PredictorPoint.variant == request.variant,
        )
    )
    if known is not None:
        return known
    row = PredictorPoint(
        profile=order.profile,
        runtime=request.runtime,
        precision=request.precision,
        variant=request.variant,
        device=order.device,
        scaled_ms=request.scaled_ms,
        measured_ms=measured_ms,
        at=order.updated_at,
    )
    session.add(row)
    session.flush()
    return row


def points(session: Session, profile: str = "") -> Sequence[PredictorPoint]:
    """The newest points, oldest first; of one profile, or of all."""
    query = select(PredictorPoint).order_by(PredictorPoint.id.desc()).limit(MAX_POINTS)
    if profile:
        query = query.where(PredictorPoint.profile == profile)
    return list(reversed(session.scalars(query).all()))


def as_json(session: Session, profiles: Sequence[str]) -> list[JsonValue]:
    """The points of some profiles, as `optimizer.predictor.Point` has its fields."""
    return [
        {
            "profile": row.profile,
            "runtime": row.runtime,
            "precision": row.precision,
            "scaled_ms": row.scaled_ms,
            "measured_ms": row.measured_ms,
        }
        for row in points(session)
        if row.profile in profiles
    ]


def latency_of(order: LabOrder) -> float | None:
    """The median latency, in ms, of an order that ended well and was not disturbed."""
    found = order.result.get("latency") if order.state == "done" else None
    if not found:
        return None
    try:
        latency = Measurement.model_validate(found)
    except ValidationError:
        return None
    return latency.p50_ms if latency.verdict != "INVALID" and latency.p50_ms > 0 else None
