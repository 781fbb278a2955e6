"""A rollout's row and its pure state.

The row's `machine` holds the state but for the assignments, and the effects that were asked for
outside a turn and wait for the next one; a row in `settings` marks a rollout that has some.  Each
assignment is a row of its own, and only those that changed are written.  Every change raises the
row's `revision`.

BrokenRollout            the rollout must not go on; a person looks at it (operator)
├── UnreadableRollout    its stored state does not parse
└── UnsettledRollout     its effects and their answers do not come to an end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import Rollout as RolloutRow
from cloud.db.tables import Setting
from edge_agent.wire.base import describe
from fleet.rollouts.events import EFFECTS, Effect
from fleet.rollouts.model import ACTIVE_STATES, Assignment, Rollout, RolloutState

_PENDING_PREFIX = "orchestrator.pending:"


class BrokenRollout(Exception):
    """The rollout must not go on."""


class UnreadableRollout(BrokenRollout):
    """The stored state does not parse."""


class UnsettledRollout(BrokenRollout):
    """Effects and their answers do not come to an end."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A rollout's state, and the effects that wait for the next turn."""

    rollout: Rollout
    pending: tuple[Effect, ...] = ()


def load(session: Session, row: RolloutRow) -> Stored:
    """The state of a rollout, its assignments read row by row.

    Raises:
        UnreadableRollout: it is not what this version of the code writes.
    """
    machine = row.machine
    try:
        rows = session.execute(
            select(AssignmentRow.device, AssignmentRow.machine).where(
                AssignmentRow.rollout == row.id
            )
        )
        assignments = {device: Assignment.model_validate(mine) for device, mine in rows}
        rollout = Rollout.model_validate({**machine["rollout"], "assignments": assignments})
        pending = EFFECTS.validate_python(machine.get("pending", []))
    except ValidationError as error:
        raise UnreadableRollout(f"rollout {row.id}: {describe(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UnreadableRollout(f"rollout {row.id}: its stored state is no state") from error
    return Stored(rollout, tuple(pending))


def pending_of(row: RolloutRow) -> tuple[Effect, ...]:
    """The effects that wait for a turn.

    Raises:
        UnreadableRollout: it is not what this version of the code writes.
    """
    try:
        return tuple(EFFECTS.validate_python(row.machine.get("pending", [])))
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
    """Write the state, and of the assignments those that differ from `before`.

    Args:
        reported: devices whose rows ingest may have set to a phase that the machine did not take,
            such as a late report after a failure.
    """
    row.machine = {
        "rollout": after.model_dump(mode="json", exclude={"assignments"}),
        "pending": EFFECTS.dump_python(list(pending), mode="json"),
    }
    row.state = after.state.value
    row.revision = (row.revision or 0) + 1
    row.updated_at = now
    mark = session.get(Setting, _PENDING_PREFIX + row.id)
    if pending and mark is None:
        session.add(Setting(key=_PENDING_PREFIX + row.id, value={}, updated_at=now))
    elif mark is not None and not pending:
        session.delete(mark)
    known: Mapping[str, Assignment] = before.assignments if before is not None else {}
    added: list[dict[str, object]] = []
    moved: list[dict[str, object]] = []
    unmoved: list[dict[str, object]] = []
    for device, mine in after.assignments.items():
        old = known.get(device)
        if old is mine and device not in reported:
            continue
        if old is None:
            added.append({**_columns(mine, now), "rollout": row.id, "device": device})
        elif _shown(old) != _shown(mine) or device in reported:
            moved.append({**_columns(mine, now), "_rollout": row.id, "_device": device})
        else:
            unmoved.append({"machine": _pure(mine), "_rollout": row.id, "_device": device})
    session.flush()
    if added:
        session.execute(insert(AssignmentRow), added)
    for rows in (moved, unmoved):
        if rows:
            session.connection().execute(_UPDATE, rows)


_UPDATE = update(AssignmentRow.__table__).where(  # type: ignore[arg-type]
    AssignmentRow.__table__.c.rollout == bindparam("_rollout"),
    AssignmentRow.__table__.c.device == bindparam("_device"),
)


def _shown(mine: Assignment) -> tuple[object, ...]:
    return mine.phase, mine.generation, mine.release.target, mine.reason, mine.detail


def _columns(mine: Assignment, now: float) -> dict[str, object]:
    return {
        "generation": mine.generation,
        "wave": mine.wave,
        "target": mine.release.target,
        "phase": mine.phase.value,
        "reason": mine.reason,
        "detail": mine.detail,
        "updated_at": now,
        "machine": _pure(mine),
    }


def _pure(mine: Assignment) -> dict[str, object]:
    return mine.model_dump(mode="json", exclude_defaults=True)


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
