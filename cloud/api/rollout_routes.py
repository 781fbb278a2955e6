"""Rollouts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from cloud import orchestrator
from cloud.api.auth import Caller, Operator, Viewer, may
from cloud.api.context import ContextDep
from cloud.db.tables import Rollout
from cloud.errors import Forbidden, NotFound
from cloud.registry import audit
from fleet.client.rollout_schemas import (
    AssignmentPage,
    ExplainOut,
    RolloutPage,
    RolloutPlanOut,
    SteerIn,
)
from fleet.client.schemas import RolloutDetail, RolloutIn

router = APIRouter(prefix="/v1")

Verb = Literal["approve", "pause", "resume", "cancel", "halt", "rollback"]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1)]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/rollouts")
def list_rollouts(
    context: ContextDep,
    _: Viewer,
    model: str = "",
    state: str = "",
    offset: Offset = 0,
    limit: Limit = 100,
) -> RolloutPage:
    with context.readers() as session:
        return orchestrator.rollout_page(
            session, model=model, state=state, offset=offset, limit=limit
        )


@router.post("/rollouts", status_code=201)
def start_rollout(body: RolloutIn, context: ContextDep, caller: Operator) -> RolloutDetail:
    with context.writers.begin() as session:
        row = orchestrator.create_rollout(
            session,
            body,
            caller.name,
            now=context.clock(),
            needs_approval=context.services.settings.rollouts_need_approval,
        )
        audit.append(
            session,
            caller.name,
            "rollout.created",
            row.id,
            {"model": body.model, "version": body.version, "state": row.state},
        )
        session.flush()
        return _detail(session, row, caller)


@router.post("/rollouts/plan")
def plan_rollout(body: RolloutIn, context: ContextDep, caller: Operator) -> RolloutPlanOut:
    """What starting this would do now; nothing is started."""
    with context.readers() as session:
        return orchestrator.plan_rollout(
            session,
            body,
            caller.name,
            now=context.clock(),
            needs_approval=context.services.settings.rollouts_need_approval,
        )


@router.get("/rollouts/{rollout_id}")
def show_rollout(rollout_id: str, context: ContextDep, caller: Viewer) -> RolloutDetail:
    with context.readers() as session:
        return _detail(session, _row(session, rollout_id), caller)


@router.get("/rollouts/{rollout_id}/assignments")
def list_assignments(
    rollout_id: str,
    context: ContextDep,
    _: Viewer,
    wave: Annotated[int | None, Query(ge=0, le=1000)] = None,
    phase: str = "",
    failed: bool = False,
    offset: Offset = 0,
    limit: Limit = 100,
) -> AssignmentPage:
    with context.readers() as session:
        _row(session, rollout_id)
        return orchestrator.assignment_page(
            session,
            rollout_id,
            wave=wave,
            phase=phase,
            failed=failed,
            offset=offset,
            limit=limit,
        )


@router.get("/rollouts/{rollout_id}/explain")
def explain_rollout(rollout_id: str, context: ContextDep, _: Viewer) -> ExplainOut:
    with context.readers() as session:
        return orchestrator.explanation(session, _row(session, rollout_id), context.clock())


@router.post("/rollouts/{rollout_id}/{verb}")
def command_rollout(
    rollout_id: str, verb: Verb, context: ContextDep, caller: Operator, body: SteerIn | None = None
) -> RolloutDetail:
    reason = body.reason if body is not None else ""
    try:
        with context.writers.begin() as session:
            row = orchestrator.command_rollout(
                session, rollout_id, verb, caller.name, now=context.clock(), reason=reason
            )
            audit.append(
                session,
                caller.name,
                f"rollout.{verb}",
                rollout_id,
                {"reason": reason} if reason else {},
            )
            return _detail(session, row, caller)
    except Forbidden as error:
        context.denials.record(
            context.writers, caller.name, f"rollout.{verb} {rollout_id}", str(error)
        )
        raise


def _row(session: Session, rollout_id: str) -> Rollout:
    row = session.get(Rollout, rollout_id)
    if row is None:
        raise NotFound(f"no rollout {rollout_id!r}")
    return row


def _detail(session: Session, row: Rollout, caller: Caller) -> RolloutDetail:
    verbs = {
        verb: may(caller, "operator") or orchestrator.why_not(row, verb, caller.name)
        for verb in get_args(Verb)
    }
    return orchestrator.rollout_detail(session, row, verbs)
