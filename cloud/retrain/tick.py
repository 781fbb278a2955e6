"""One turn of the schedule: decide about every champion, and remember what was decided.

The newest decision of a model is kept in the settings table; a change of action is audited.  Jobs
are started by the caller, after this transaction: the job queue writes by itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import ModelVersion, Project, Setting
from cloud.registry import audit, subject
from cloud.retrain.facts import gather
from cloud.retrain.policy import Decision, RetrainPolicy, decide

log = logging.getLogger("skerry.retrain")


@dataclass(frozen=True, slots=True)
class Turn:
    """What was decided about one model.

    Attributes:
        start_job: the policy is automatic and a retraining is due: start a job of `project`.
    """

    model: str
    version: int
    project: str
    decision: Decision
    start_job: bool


def tick(session: Session, now: float) -> list[Turn]:
    """Decide about every model that has a champion, by its project's policy."""
    champions = session.scalars(
        select(ModelVersion).where(ModelVersion.state == "champion").order_by(ModelVersion.model)
    )
    return [turn(session, champion, policy_of(session, champion), now) for champion in champions]


def turn(session: Session, champion: ModelVersion, policy: RetrainPolicy, now: float) -> Turn:
    """Decide about one champion."""
    decision = decide(gather(session, champion, policy), policy, now)
    _remember(session, champion, decision, now)
    return Turn(
        model=champion.model,
        version=champion.version,
        project=champion.project,
        decision=decision,
        start_job=policy.automatic and decision.action == "retrain",
    )


def policy_of(session: Session, champion: ModelVersion) -> RetrainPolicy:
    """The `retrain` section of the project as last applied; the defaults without one."""
    project = session.get(Project, champion.project)
    section = project.spec.get("retrain") if project is not None else None
    return RetrainPolicy.model_validate(section or {})


def last_decision(session: Session, model: str) -> Decision | None:
    """What the newest turn decided about a model."""
    row = session.get(Setting, f"retrain:{model}")
    return Decision(row.value["action"], row.value["reason"]) if row is not None else None


def _remember(session: Session, champion: ModelVersion, decision: Decision, now: float) -> None:
    previous = last_decision(session, champion.model)
    if previous == decision:
        return
    value = {"action": decision.action, "reason": decision.reason, "version": champion.version}
    session.merge(Setting(key=f"retrain:{champion.model}", value=value, updated_at=now))
    session.flush()
    if previous is None or previous.action != decision.action:
        audit.append(
            session,
            "control-plane",
            "retrain.decided",
            subject(champion.model, champion.version),
            {"action": decision.action, "reason": decision.reason},
            at=now,
        )
        log.info(
            "retrain.decided model=%s version=%d action=%s",
            champion.model, champion.version, decision.action,
        )  # fmt: skip
