"""A rollout's row and its pure state.

`machine` holds the whole state, and the effects that were asked for outside a turn and wait for
the next one; a row in `settings` marks a rollout that has some.  `state` repeats the state for
queries, `assignments` repeats the phases.

BrokenRollout            the rollout must not go on; a person looks at it (operator)
├── UnreadableRollout    its stored state does not parse
└── UnsettledRollout     its effects and their answers do not come to an end
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import Rollout as RolloutRow
from cloud.db.tables import Setting
from edge_agent.wire.base import describe
from fleet.rollouts.events import Effect
from fleet.rollouts.model import ACTIVE_STATES, Frozen, Rollout, RolloutState

_PENDING_PREFIX = "orchestrator.pending:"


class BrokenRollout(Exception):
    """The rollout must not go on."""


class UnreadableRollout(BrokenRollout):
    """The stored state does not parse."""


class UnsettledRollout(BrokenRollout):
    """Effects and their answers do not come to an end."""


class Stored(Frozen):
    """What the column `machine` holds."""

    rollout: Rollout
    pending: tuple[Effect, ...] = ()


def load(row: RolloutRow) -> Stored:
    """Parse a row.

    Raises:
        UnreadableRollout: it is not what this version of the code writes.
    """
    try:
        return Stored.model_validate(row.machine)
    except ValidationError as error:
        raise UnreadableRollout(f"rollout {row.id}: {describe(error)}") from error


def lock(session: Session, rollout_id: str) -> RolloutRow | None:
    """The row, held against other writers until the transaction ends."""
    return session.get(RolloutRow, rollout_id, with_for_update=True, populate_existing=True)


def save(
    session: Session,
    row: RolloutRow,
    before: Rollout | None,
    after: Rollout,
    pending: Sequence[Effect],
    now: float,
    *,
    reported: Set[str] = frozenset(),
) -> None:
    """Write the state, and the assignments that differ from `before`.

    Args:
        reported: devices whose rows ingest may have set to a phase that the machine did not take,
            such as a late report after a failure.
    """
    row.machine = Stored(rollout=after, pending=tuple(pending)).model_dump(mode="json")
    row.state = after.state.value
    row.updated_at = now
    mark = session.get(Setting, _PENDING_PREFIX + row.id)
    if pending and mark is None:
        session.add(Setting(key=_PENDING_PREFIX + row.id, value={}, updated_at=now))
    elif mark is not None and not pending:
        session.delete(mark)
    changed = [
        mine
        for device, mine in after.assignments.items()
        if before is None or device in reported or before.assignments.get(device) is not mine
    ]
    if not changed:
        return
    rows = {
        each.device: each
        for each in session.scalars(select(AssignmentRow).where(AssignmentRow.rollout == row.id))
    }
    for mine in changed:
        known = rows.get(mine.device)
        if known is None:
            known = AssignmentRow(rollout=row.id, device=mine.device)
            session.add(known)
        elif (known.phase, known.generation) == (mine.phase.value, mine.generation) and (
            known.target == mine.release.target
        ):
            continue  # ingest wrote the phase already, or only connectivity changed
        known.generation = mine.generation
        known.wave = mine.wave
        known.target = mine.release.target
        known.phase = mine.phase.value
        known.reason = mine.reason
        known.detail = mine.detail
        known.updated_at = now


def with_pending(session: Session) -> set[str]:
    """Rollouts whose effects wait for a turn."""
    keys = session.scalars(
        select(Setting.key).where(Setting.key.startswith(_PENDING_PREFIX, autoescape=True))
    )
    return {key.removeprefix(_PENDING_PREFIX) for key in keys}


def halt_broken(session: Session, row: RolloutRow, now: float) -> bool:
    """Stop a broken rollout; what is stored of it is left for a person to see.

    Returns:
        False when it had ended already.
    """
    mark = session.get(Setting, _PENDING_PREFIX + row.id)
    if mark is not None:
        session.delete(mark)
    if row.state not in {state.value for state in ACTIVE_STATES}:
        return False
    row.state = RolloutState.HALTED.value
    row.updated_at = now
    return True
