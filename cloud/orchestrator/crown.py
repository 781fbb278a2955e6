"""Which version is the champion after a rollout."""

from __future__ import annotations

import logging
from collections import Counter

from sqlalchemy.orm import Session

from cloud.registry import models as registry
from cloud.registry.errors import RegistryError
from fleet.rollouts.model import Rollout

log = logging.getLogger("skerry.orchestrator")


def crown(session: Session, rollout: Rollout, now: float) -> None:
    """A rollout that left no device of its profiles out makes its version the champion.

    One that only tries its version beside another does not.
    """
    if rollout.plan.whole_fleet and not rollout.plan.is_trial:
        _promote(
            session,
            rollout.plan.model,
            rollout.plan.version,
            f"rollout {rollout.id} completed",
            now,
        )


def uncrown(session: Session, rollout: Rollout, now: float) -> None:
    """After a roll-back the version that most devices went back to is the champion again."""
    model, version = rollout.plan.model, rollout.plan.version
    champion = registry.champion(session, model)
    back = Counter(
        mine.release.version
        for mine in rollout.assignments.values()
        if mine.release.version != version
    )
    if champion is not None and champion.version == version and back:
        reason = f"rollout {rollout.id} was rolled back"
        _promote(session, model, back.most_common(1)[0][0], reason, now)


def _promote(session: Session, model: str, version: int, reason: str, now: float) -> None:
    try:
        registry.transition(session, model, version, "champion", "orchestrator", reason, at=now)
    except RegistryError as error:
        log.warning("champion.unchanged model=%s version=%d reason=%s", model, version, error)
