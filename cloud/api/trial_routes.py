"""Trials: the share of a version that is tried, its figures, and its promotion.

Dropping one is the verb `rollback` of its rollout.
"""

from __future__ import annotations

from fastapi import APIRouter

from cloud import orchestrator
from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.orchestrator import trials
from cloud.registry import audit
from fleet.client.schemas import RolloutDetail
from fleet.client.trial_schemas import PromoteIn, ShareIn, TrialOut

router = APIRouter(prefix="/v1")


@router.get("/rollouts/{rollout_id}/trial")
def show_trial(rollout_id: str, context: ContextDep, _: Viewer) -> TrialOut:
    with context.readers() as session:
        return trials.trial_out(session, rollout_id)


@router.put("/rollouts/{rollout_id}/trial/share")
def share_trial(rollout_id: str, body: ShareIn, context: ContextDep, caller: Operator) -> TrialOut:
    with context.writers.begin() as session:
        trials.set_share(session, rollout_id, body.share, now=context.clock())
        audit.append(session, caller.name, "rollout.share", rollout_id, {"share": str(body.share)})
        session.flush()
        return trials.trial_out(session, rollout_id)


@router.post("/rollouts/{rollout_id}/trial/promote", status_code=201)
def promote_trial(
    rollout_id: str, body: PromoteIn, context: ContextDep, caller: Operator
) -> RolloutDetail:
    with context.writers.begin() as session:
        row = trials.promote(session, rollout_id, body, caller.name, now=context.clock())
        audit.append(session, caller.name, "rollout.promoted", rollout_id, {"by": row.id})
        session.flush()
        return orchestrator.rollout_detail(session, row)
