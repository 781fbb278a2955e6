"""Signed evidence of a rollout's gates."""

from __future__ import annotations

from fastapi import APIRouter

from cloud.api.auth import Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import Rollout
from cloud.errors import NotFound
from cloud.orchestrator.evidence import evidence_of
from fleet.client.evidence_schemas import EvidenceOut

router = APIRouter(prefix="/v1")


@router.get("/rollouts/{rollout_id}/evidence")
def show_evidence(rollout_id: str, context: ContextDep, _: Viewer) -> EvidenceOut:
    with context.readers() as session:
        if session.get(Rollout, rollout_id) is None:
            raise NotFound(f"no rollout {rollout_id!r}")
        return evidence_of(session, rollout_id)
