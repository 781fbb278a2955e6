"""Rollouts as the API shows them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, GateDecision, Rollout
from fleet.client.schemas import GateOut, RolloutDetail, RolloutOut
from fleet.rollouts.model import FAILURES, RESPONDED, AssignmentPhase

_FAILED = frozenset(phase.value for phase in FAILURES)
_RESPONDED = frozenset(phase.value for phase in RESPONDED)
_HEALTHY = AssignmentPhase.HEALTHY.value
_UNREACHABLE = AssignmentPhase.UNREACHABLE.value


def rollout_out(session: Session, row: Rollout) -> RolloutOut:
    """One rollout with its waves."""
    return RolloutOut.model_validate(_fields(session, row))


def rollout_detail(session: Session, row: Rollout) -> RolloutDetail:
    """One rollout with its devices and the evidence of its gates."""
    assignments = session.scalars(
        select(Assignment)
        .where(Assignment.rollout == row.id)
        .order_by(Assignment.wave, Assignment.device)
    )
    gates = session.scalars(
        select(GateDecision)
        .where(GateDecision.subject.startswith(f"rollout:{row.id}:", autoescape=True))
        .order_by(GateDecision.id)
    )
    return RolloutDetail.model_validate(
        {
            **_fields(session, row),
            "plan": row.plan,
            "assignments": [
                {
                    "device": each.device,
                    "wave": each.wave,
                    "phase": each.phase,
                    "reason": each.reason,
                    "detail": each.detail,
                    "generation": each.generation,
                    "target": each.target,
                    "updated_at": each.updated_at,
                }
                for each in assignments
            ],
            "gates": [
                GateOut(
                    gate=f"wave {int(each.subject.rsplit(':', 1)[1]) + 1}: {each.gate}",
                    verdict=each.verdict,
                    reason=each.reason,
                    evidence=each.evidence,
                    at=each.at,
                )
                for each in gates
            ],
        }
    )


def _fields(session: Session, row: Rollout) -> dict[str, Any]:
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
        "waves": _waves(session, row.id, machine.get("waves") or []),
    }


def _waves(session: Session, rollout_id: str, waves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for index, phase, count in session.execute(
        select(Assignment.wave, Assignment.phase, func.count())
        .where(Assignment.rollout == rollout_id)
        .group_by(Assignment.wave, Assignment.phase)
    ):
        counts[index][phase] = count
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
                "soak_s": wave["soak_s"],
                "started_at": wave["started_at"],
                "ended_at": wave["ended_at"],
                "reason": wave["reason"],
            }
        )
    return shown
