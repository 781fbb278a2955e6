"""What people ask of rollouts, within the transaction of the API.

The machine is stepped at once, so the answer shows the new state; effects wait for the
orchestrator's next turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy.orm import Session

from cloud.db.tables import Rollout as RolloutRow
from cloud.errors import Conflict, Forbidden, NotFound, UserError
from cloud.orchestrator.drafting import draft_rollout
from cloud.orchestrator.stored import UnreadableRollout, load, lock, save
from fleet.client.schemas import RolloutIn
from fleet.rollouts import events as ev
from fleet.rollouts.machine import VERBS, step
from fleet.rollouts.model import Rollout
from fleet.rollouts.people import Command, may_approve

_EVENTS: Mapping[str, Callable[..., Command]] = {
    "approve": ev.Approved,
    "pause": ev.Pause,
    "resume": ev.Resume,
    "cancel": ev.Cancel,
    "halt": ev.Halt,
    "rollback": ev.Rollback,
}


def create_rollout(
    session: Session,
    request: RolloutIn,
    actor: str,
    *,
    now: float | None = None,
    needs_approval: bool = False,
) -> RolloutRow:
    """Put the devices that match into waves, and start.

    Args:
        needs_approval: the control plane's policy; the project's and the request's add to it.

    Raises:
        NotFound, Conflict, UserError: as `cloud.orchestrator.drafting.draft_rollout`.
    """
    at = time.time() if now is None else now
    drafted = draft_rollout(session, request, actor, at, needs_approval=needs_approval)
    return begin(session, drafted.rollout, request, actor, at)


def begin(
    session: Session, rollout: Rollout, request: RolloutIn, actor: str, at: float
) -> RolloutRow:
    """Store a draft and start it.

    Args:
        request: what was asked for, for people to see.
    """
    rollout, effects = step(rollout, ev.Started(), at)
    row = RolloutRow(
        id=rollout.id,
        model=request.model,
        version=request.version,
        state=rollout.state.value,
        plan=request.model_dump(mode="json"),
        machine={},
        created_by=actor,
        created_at=at,
        updated_at=at,
    )
    session.add(row)
    session.flush()
    save(session, row, None, rollout, effects, at)
    session.flush()
    return row


def command_rollout(
    session: Session,
    rollout_id: str,
    verb: str,
    actor: str,
    *,
    now: float | None = None,
    reason: str = "",
) -> RolloutRow:
    """approve, pause, resume, cancel, halt or roll back; resuming accepts an inconclusive wave.

    Args:
        reason: a person's words; they are kept with a halt.

    Raises:
        NotFound: no such rollout.
        UserError: no such verb.
        Forbidden: whoever created the rollout wants to approve it.
        Conflict: the rollout's state does not allow it.
    """
    event_of = _EVENTS.get(verb)
    if event_of is None:
        raise UserError(f"no action {verb!r}; there are {', '.join(sorted(_EVENTS))}")
    row = lock(session, rollout_id)
    if row is None:
        raise NotFound(f"no rollout {rollout_id!r}")
    at = time.time() if now is None else now
    try:
        stored = load(session, row)
    except UnreadableRollout as error:
        raise Conflict(str(error)) from error
    before = stored.rollout
    refusal = why_not(row, verb, actor)
    if refusal:
        raise (Conflict if before.state not in VERBS[verb] else Forbidden)(refusal)
    event = event_of(actor=actor, reason=reason) if verb == "halt" else event_of(actor=actor)
    after, effects = step(before, event, at)
    save(session, row, before, after, (*stored.pending, *effects), at)
    session.flush()
    return row


def why_not(row: RolloutRow, verb: str, actor: str) -> str:
    """Why `actor` may not do this to the rollout now; empty when that is possible."""
    if row.state not in {state.value for state in VERBS[verb]}:
        needed = ", ".join(sorted(VERBS[verb]))
        return f"rollout {row.id} is {row.state}; {verb} needs {needed}"
    if verb == "approve" and not may_approve(row.created_by, actor):
        return f"rollout {row.id} was created by {actor}: a second person must approve it"
    return ""
