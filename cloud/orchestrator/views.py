"""Rollouts as the API shows them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, GateDecision, Rollout
from cloud.errors import Conflict
from cloud.orchestrator.stored import UnreadableRollout, load
from fleet.client.rollout_schemas import (
    AssignmentOut,
    AssignmentPage,
    ExplainOut,
    HeldUpOut,
    RolloutPage,
)
from fleet.client.schemas import GateOut, RolloutDetail, RolloutOut
from fleet.rollouts.events import GateDecided
from fleet.rollouts.explain import explain
from fleet.rollouts.model import FAILURES, IN_FLIGHT, RESPONDED, AssignmentPhase

WaveCounts = defaultdict[int, Counter[str]]
"""Wave → phase → devices."""

_FAILED = frozenset(phase.value for phase in FAILURES)
_IN_FLIGHT = frozenset(phase.value for phase in IN_FLIGHT)
_RESPONDED = frozenset(phase.value for phase in RESPONDED)
_HEALTHY = AssignmentPhase.HEALTHY.value
_UNREACHABLE = AssignmentPhase.UNREACHABLE.value
_QUEUED = AssignmentPhase.QUEUED.value

MAX_DETAIL_DEVICES = 200
"""Devices that come with a rollout's detail; pages have all."""


def rollouts_out(session: Session, rows: Sequence[Rollout]) -> list[RolloutOut]:
    """Rollouts with their waves, by one query for all of them."""
    counts = _counts(session, rows)
    return [RolloutOut.model_validate(_fields(row, counts[row.id])) for row in rows]


def rollout_page(
    session: Session, *, model: str = "", state: str = "", offset: int = 0, limit: int = 100
) -> RolloutPage:
    """Rollouts that match both filters (empty: all), newest first."""
    wanted = [Rollout.model == model] if model else []
    if state:
        wanted.append(Rollout.state == state.upper())
    rows = session.scalars(
        select(Rollout)
        .where(*wanted)
        .order_by(Rollout.created_at.desc(), Rollout.id)
        .offset(offset)
        .limit(limit)
    )
    total = session.scalar(select(func.count()).select_from(Rollout).where(*wanted)) or 0
    return RolloutPage(items=rollouts_out(session, rows.all()), total=total, offset=offset)


def rollout_detail(
    session: Session, row: Rollout, verbs: Mapping[str, str] | None = None
) -> RolloutDetail:
    """One rollout with the devices that need a look most, and the evidence of its gates.

    Args:
        verbs: what the caller may ask for, or why not.
    """
    shown = assignment_page(session, row.id, limit=MAX_DETAIL_DEVICES)
    return RolloutDetail.model_validate(
        {
            **_fields(row, _counts(session, [row])[row.id]),
            "plan": row.plan,
            "assignments": [each.model_dump() for each in shown.items],
            "gates": [
                GateOut(
                    gate=f"wave {int(each.subject.rsplit(':', 1)[1]) + 1}: {each.gate}",
                    verdict=each.verdict,
                    reason=each.reason,
                    evidence=each.evidence,
                    at=each.at,
                )
                for each in _decisions(session, row.id)
            ],
            "verbs": dict(verbs or {}),
        }
    )


def assignment_page(
    session: Session,
    rollout_id: str,
    *,
    wave: int | None = None,
    phase: str = "",
    failed: bool = False,
    offset: int = 0,
    limit: int = 100,
) -> AssignmentPage:
    """Devices of a rollout: failures first, then those under way, then the rest."""
    wanted = [Assignment.rollout == rollout_id]
    if wave is not None:
        wanted.append(Assignment.wave == wave)
    if phase:
        wanted.append(Assignment.phase == phase)
    if failed:
        wanted.append(Assignment.phase.in_(_FAILED))
    urgency = case(
        (Assignment.phase.in_(_FAILED), 0),
        (Assignment.phase.in_(_IN_FLIGHT), 1),
        (Assignment.phase == _UNREACHABLE, 2),
        (Assignment.phase.in_((_QUEUED, _HEALTHY)), 3),
        else_=4,
    )
    rows = session.scalars(
        select(Assignment)
        .where(*wanted)
        .order_by(urgency, Assignment.wave, Assignment.device)
        .offset(offset)
        .limit(limit)
    )
    total = session.scalar(select(func.count()).select_from(Assignment).where(*wanted)) or 0
    items = [AssignmentOut.model_validate(row, from_attributes=True) for row in rows]
    return AssignmentPage(items=items, total=total, offset=offset)


def explanation(session: Session, row: Rollout, now: float) -> ExplainOut:
    """Why a rollout is where it is.

    Raises:
        Conflict: its stored state cannot be read.
    """
    try:
        rollout = load(session, row).rollout
    except UnreadableRollout as error:
        raise Conflict(str(error)) from error
    decisions = [
        GateDecided(
            wave=int(each.subject.rsplit(":", 1)[1]),
            gate=each.gate,
            verdict=each.verdict,
            reason=each.reason,
            evidence=each.evidence,
        )
        for each in _decisions(session, row.id)
    ]
    found = explain(rollout, decisions, now)
    return ExplainOut(
        id=row.id,
        state=row.state,
        headline=found.headline,
        lines=list(found.lines),
        held_up=[
            HeldUpOut(device=each.device, phase=each.phase, for_s=each.for_s, reason=each.reason)
            for each in found.held_up
        ],
        held_up_total=found.held_up_total,
        waits_for=found.waits_for,
        plan=row.plan,
    )


def _decisions(session: Session, rollout_id: str) -> Sequence[GateDecision]:
    return session.scalars(
        select(GateDecision)
        .where(GateDecision.subject.startswith(f"rollout:{rollout_id}:", autoescape=True))
        .order_by(GateDecision.id)
    ).all()


def _counts(session: Session, rows: Sequence[Rollout]) -> dict[str, WaveCounts]:
    """How many devices of each wave are in each phase, by rollout."""
    counts: dict[str, WaveCounts] = {row.id: defaultdict(Counter) for row in rows}
    for rollout, index, phase, count in session.execute(
        select(Assignment.rollout, Assignment.wave, Assignment.phase, func.count())
        .where(Assignment.rollout.in_(counts))
        .group_by(Assignment.rollout, Assignment.wave, Assignment.phase)
    ):
        counts[rollout][index][phase] = count
    return counts


def _fields(row: Rollout, counts: WaveCounts) -> dict[str, Any]:
    # Read leniently: a state that the machine refuses is still shown.
    machine = row.machine.get("rollout") or {}
    return {
        "id": row.id,
        "model": row.model,
        "version": row.version,
        "state": row.state,
        "reason": machine.get("reason", "its stored state cannot be read"),
        "created_by": row.created_by,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "waves": _waves(counts, machine.get("waves") or []),
    }


def _waves(counts: WaveCounts, waves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for index, wave in enumerate(waves):
        phases = counts[index]
        total = phases.total()
        responded = sum(phases[phase] for phase in _RESPONDED)
        shown.append(
            {
                "index": index,
                "state": wave["state"],
                "devices": total,
                "healthy": phases[_HEALTHY],
                "failed": sum(phases[phase] for phase in _FAILED),
                "pending": total - responded,
                "unreachable": phases[_UNREACHABLE],
                "phases": dict(phases),
                "what": wave.get("what", ""),
                "approved_by": wave.get("approved_by", ""),
                "soak_s": wave["soak_s"],
                "started_at": wave["started_at"],
                "settled_at": wave.get("settled_at"),
                "ended_at": wave["ended_at"],
                "reason": wave["reason"],
            }
        )
    return shown
