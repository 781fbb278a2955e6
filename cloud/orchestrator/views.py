"""Rollouts as the API shows them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, GateDecision, Rollout
from fleet.client.schemas import GateOut, RolloutDetail, RolloutOut
from fleet.rollouts.model import FAILURES, RESPONDED, AssignmentPhase

WaveCounts = defaultdict[int, Counter[str]]
"""Wave → phase → devices."""

_FAILED = frozenset(phase.value for phase in FAILURES)
_RESPONDED = frozenset(phase.value for phase in RESPONDED)
_HEALTHY = AssignmentPhase.HEALTHY.value
_UNREACHABLE = AssignmentPhase.UNREACHABLE.value


def rollouts_out(session: Session, rows: Sequence[Rollout]) -> list[RolloutOut]:
    """Rollouts with their waves, by one query for all of them."""
    counts = _counts(session, rows)
    return [RolloutOut.model_validate(_fields(row, counts[row.id])) for row in rows]


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
            **_fields(row, _counts(session, [row])[row.id]),
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
                "soak_s": wave["soak_s"],
                "started_at": wave["started_at"],
                "ended_at": wave["ended_at"],
                "reason": wave["reason"],
            }
        )
    return shown
