"""Rollouts."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from sqlalchemy import select

from cloud import orchestrator
from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import Rollout
from cloud.errors import NotFound
from cloud.registry import audit
from fleet.client.schemas import RolloutDetail, RolloutIn, RolloutOut

router = APIRouter(prefix="/v1")

Verb = Literal["approve", "pause", "resume", "cancel", "halt", "rollback"]


@router.get("/rollouts")
def list_rollouts(context: ContextDep, _: Viewer) -> list[RolloutOut]:
    with context.readers() as session:
        rows = session.scalars(select(Rollout).order_by(Rollout.created_at.desc()).limit(200))
        return orchestrator.rollouts_out(session, rows.all())


@router.post("/rollouts", status_code=201)
def start_rollout(body: RolloutIn, context: ContextDep, caller: Operator) -> RolloutDetail:
    with context.writers.begin() as session:
        row = orchestrator.create_rollout(session, body, caller.name, now=context.clock())
        audit.append(
            session,
            caller.name,
            "rollout.created",
            row.id,
            {"model": body.model, "version": body.version},
        )
        session.flush()
        return orchestrator.rollout_detail(session, row)


@router.get("/rollouts/{rollout_id}")
def show_rollout(rollout_id: str, context: ContextDep, _: Viewer) -> RolloutDetail:
    with context.readers() as session:
        row = session.get(Rollout, rollout_id)
        if row is None:
            raise NotFound(f"no rollout {rollout_id!r}")
        return orchestrator.rollout_detail(session, row)


@router.post("/rollouts/{rollout_id}/{verb}")
def command_rollout(
    rollout_id: str, verb: Verb, context: ContextDep, caller: Operator
) -> RolloutDetail:
    with context.writers.begin() as session:
        row = orchestrator.command_rollout(
            session, rollout_id, verb, caller.name, now=context.clock()
        )
        audit.append(session, caller.name, f"rollout.{verb}", rollout_id, {})
        return orchestrator.rollout_detail(session, row)
