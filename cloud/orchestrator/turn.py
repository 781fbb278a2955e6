"""The orchestrator's turn: read, step, carry out, commit.  What it queues, `outbox` sends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.commands.sweep import sweep
from cloud.db import order
from cloud.db.engine import Sessions
from cloud.db.tables import Assignment as AssignmentRow
from cloud.db.tables import AssignmentEvent
from cloud.db.tables import Rollout as RolloutRow
from cloud.errors import UserError
from cloud.orchestrator import figures, intake, lease, reconcile, strays
from cloud.orchestrator.effects import Executor
from cloud.orchestrator.kept import Kept, Known
from cloud.orchestrator.ports import Signer
from cloud.orchestrator.selecting import newcomers
from cloud.orchestrator.stored import (
    BrokenRollout,
    Stored,
    UnsettledRollout,
    halt_broken,
    load,
    lock,
    pending_of,
    save,
    with_pending,
)
from cloud.registry import audit
from cloud.releases import settle_staged
from cloud.signing import ImageRepository, SigningError
from cloud.signing.evidence import EvidenceKey
from fleet.rollouts import events as ev
from fleet.rollouts.machine import run
from fleet.rollouts.model import (
    ACTIVE_STATES,
    IN_FLIGHT,
    AssignmentPhase,
    Release,
    Rollout,
    RolloutState,
)

log = logging.getLogger("skerry.orchestrator")

_IN_FLIGHT = [phase.value for phase in IN_FLIGHT]

LOOK_INTERVAL_S = 10.0
"""Seconds between two looks for newcomers and strays."""

MAX_ROUNDS = 8
"""Effects and answers of one rollout in one turn; a healthy machine needs three at most."""

COMMANDS_INTERVAL_S = 1.0
"""Between two looks at commands to devices."""

MAX_ASSIGNED: Final = 1000
"""Devices that one turn gives an assignment of one rollout; the rest follow in the next turns."""


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What a turn did.

    Attributes:
        leader: False while another orchestrator holds the lease; nothing was done then.
        stepped: rollouts that were looked at.
        followed: devices that were given the champion of their model.
    """

    leader: bool
    stepped: int = 0
    followed: int = 0


class Orchestrator:
    """See the package.  One instance a process; not for use by several threads at once."""

    def __init__(
        self,
        sessions: Sessions,
        blobs: Blobs,
        director: Signer,
        image_repository: ImageRepository,
        evidence_key: EvidenceKey,
        *,
        holder: str = "",
        lease_s: float = 10.0,
        lease_clock: lease.LeaseClock = lease.database_clock,
        reconcile_interval_s: float = 2.0,
        refresh_interval_s: float = 60.0,
    ) -> None:
        """Nothing is read or written before the first turn.

        Args:
            holder: name for the lease; drawn when empty.
            lease_s: seconds after which another orchestrator may take over from a dead one.
            reconcile_interval_s: seconds between two looks for devices that follow the champion.
            refresh_interval_s: seconds between two looks for metadata that is about to expire.
        """
        self._sessions = sessions
        self._blobs = blobs
        self._director = director
        self._image_repository = image_repository
        self._evidence_key = evidence_key
        self._holder = holder or lease.new_holder()
        self._lease_s = lease_s
        self._lease_clock = lease_clock
        self._reconcile_interval_s = reconcile_interval_s
        self._refresh_interval_s = refresh_interval_s
        self._reconcile_at = 0.0
        self._look_at = 0.0
        self._refresh_at = 0.0
        self._kept = Kept()
        self._commands_at = 0.0

    def turn(self, now: float) -> TurnResult:
        """Everything that is due at `now` (seconds since the epoch), in one transaction."""
        reconciling = now >= self._reconcile_at
        looking = now >= self._look_at
        self._kept.begin()
        with self._sessions.begin() as session:
            if not self._leads(session):
                return TurnResult(leader=False)
            settled = self._settled(session)
            executor = Executor(
                session, self._blobs, self._image_repository, self._evidence_key, now
            )
            stepped = self._step_all(session, executor, settled, now, reconciling)
            followed = 0
            if reconciling:
                followed = reconcile.follow_champions(session, now, executor.raised)
            if looking:
                self._let_newcomers_join(session, executor, now)
                self._assign_strays_again(session, executor, now)
        self._kept.commit(now)
        if reconciling:
            self._reconcile_at = now + self._reconcile_interval_s
        if looking:
            self._look_at = now + LOOK_INTERVAL_S
        self._sweep_commands(now)
        self._refresh(now)
        return TurnResult(leader=True, stepped=stepped, followed=followed)

    def close(self) -> None:
        """Give the lease back."""
        with self._sessions.begin() as session:
            lease.release(session, lease.ORCHESTRATOR, self._holder)

    def _settled(self, session: Session) -> int:
        """Up to which number reports are all there."""
        if session.get_bind().dialect.name == "sqlite":
            return order.settled(session, AssignmentEvent.id)
        with self._sessions.begin() as own:  # which ends at once: ingest waits for it
            return order.settled(own, AssignmentEvent.id)

    def _leads(self, session: Session) -> bool:
        return lease.hold(
            session, lease.ORCHESTRATOR, self._holder, self._lease_s, self._lease_clock
        )

    def _let_newcomers_join(self, session: Session, executor: Executor, now: float) -> None:
        active = RolloutRow.state.in_([state.value for state in ACTIVE_STATES])
        for row in session.scalars(select(RolloutRow).where(active).order_by(RolloutRow.id)).all():
            plan = (row.machine.get("rollout") or {}).get("plan") or {}
            if not plan.get("takes_newcomers"):
                continue
            try:
                found = newcomers(session, row, frozenset(plan["releases"]), now)
            except UserError as error:  # its group was deleted since
                log.warning("rollout.newcomers_unknown id=%s reason=%s", row.id, error)
                continue
            if found:
                joined = [ev.Joined(device=d, profile=p, online=o) for d, p, o in found]
                self._step(session, executor, row.id, joined, (), now)

    def _assign_strays_again(self, session: Session, executor: Executor, now: float) -> None:
        for rollout_id, device, generation, release in strays.reassign(
            session, now, executor.raised
        ):
            again = ev.Assigned(
                device=device,
                generation=generation,
                release=Release(
                    target=release.target, version=release.version, counter=release.counter
                ),
            )
            self._step(session, executor, rollout_id, [again], (), now)

    def _step_all(
        self, session: Session, executor: Executor, settled: int, now: float, reconciling: bool
    ) -> int:
        reports = intake.new_reports(session, now, settled)
        active = [state.value for state in ACTIVE_STATES]
        pending = with_pending(session)
        due = or_(RolloutRow.state.in_(active), RolloutRow.id.in_(pending | set(reports)))
        if reconciling:  # late returners of completed rollouts are watched, too
            late = select(AssignmentRow.rollout).where(AssignmentRow.phase.in_(_IN_FLIGHT))
            completed = RolloutRow.state == RolloutState.COMPLETED.value
            due = or_(due, and_(completed, RolloutRow.id.in_(late)))
        rows = session.execute(select(RolloutRow.id, RolloutRow.revision).where(due)).all()
        changed = intake.changes(session, self._kept.changes_since) if rows else []
        stepped = 0
        for rollout_id, revision in sorted((row.id, row.revision) for row in rows):
            happened = reports.get(rollout_id, [])
            known = self._kept.get(rollout_id, revision)
            if known is not None and not happened and rollout_id not in pending:
                observed = intake.observations(changed, known.rollout)
                if not (observed or known.tick_due(now) or known.look_due(now)):
                    continue
            self._step(session, executor, rollout_id, happened, changed, now)
            stepped += 1
        for rollout_id, wanted in list(executor.superseded.items()):
            self._step(session, executor, rollout_id, wanted, (), now)
        for rollout_id, devices in list(executor.taken.items()):
            taken: list[ev.Event] = [
                ev.Dropped(
                    device=device,
                    phase=AssignmentPhase.SUPERSEDED,
                    reason="a newer assignment took the device",
                )
                for device in devices
            ]
            self._step(session, executor, rollout_id, taken, (), now)
        return stepped

    def _step(
        self,
        session: Session,
        executor: Executor,
        rollout_id: str,
        happened: Sequence[ev.Event],
        changed: Sequence[intake.Seen],
        now: float,
    ) -> None:
        row = lock(session, rollout_id)
        if row is None:
            return
        try:
            with session.begin_nested():
                self._step_row(session, executor, row, happened, changed, now)
        except BrokenRollout as error:
            log.error("rollout.broken id=%s reason=%s", rollout_id, error)
            row = lock(session, rollout_id)
            if row is not None and halt_broken(session, row, now):
                audit.append(
                    session,
                    "orchestrator",
                    "rollout.halted",
                    rollout_id,
                    {"reason": str(error)},
                    at=now,
                )

    def _step_row(
        self,
        session: Session,
        executor: Executor,
        row: RolloutRow,
        happened: Sequence[ev.Event],
        changed: Sequence[intake.Seen],
        now: float,
    ) -> None:
        known = self._kept.get(row.id, row.revision)
        looking = known is None or known.look_due(now)
        stored = Stored(known.rollout, pending_of(row)) if known is not None else load(session, row)
        before = stored.rollout
        events: list[ev.Event] = [*happened]
        if before.state in ACTIVE_STATES or before.state is RolloutState.COMPLETED:
            devices = intake.under_way(session, before) if looking else changed
            events += intake.observations(devices, before)
            comparison = figures.comparison(session, before, now)
            events.append(ev.Tick(comparison=comparison))
        after, assigned, left = _settle(executor, stored, events, now)
        reported = {each.device for each in happened if isinstance(each, ev.DeviceReported)}
        if after != before or stored.pending or reported:
            save(session, row, before, after, left, now, reported=reported)
            session.flush()
        # who was just given an assignment may have been away all the time: look at the next turn
        looked_at = now if looking or known is None else known.looked_at
        self._kept.put(row.id, Known(row.revision, after, now, 0.0 if assigned else looked_at))

    def _sweep_commands(self, now: float) -> None:
        """What time does to commands; trouble there must not keep rollouts from halting."""
        if now < self._commands_at:
            return
        self._commands_at = now + COMMANDS_INTERVAL_S
        try:
            with self._sessions.begin() as session:
                sweep(session, now)
        except Exception:
            log.exception("commands.sweep_failed")

    def _refresh(self, now: float) -> None:
        """Renew metadata; trouble there must not keep rollouts from halting."""
        if now < self._refresh_at:
            return
        self._refresh_at = now + self._refresh_interval_s
        for renew in (self._image_repository.refresh_timestamp, self._director.refresh_timestamps):
            try:
                renew()
            except SigningError as error:
                log.error("metadata.not_renewed reason=%s", error)
        with self._sessions.begin() as session:
            settle_staged(session, self._image_repository, "orchestrator")


def _settle(
    executor: Executor, stored: Stored, events: Sequence[ev.Event], now: float
) -> tuple[Rollout, bool, list[ev.Effect]]:
    """Step, carry out, and step with the answers, until the machine asks for nothing more.

    Of a large wave's assignments some are left for the next turns, so that no transaction is long.

    Returns:
        The state, whether devices were assigned something, and what is left.
    """
    rollout, effects = stored.rollout, [*stored.pending]
    room = MAX_ASSIGNED
    left: list[ev.Effect] = []
    for _ in range(MAX_ROUNDS):
        now_due: list[ev.Effect] = []
        for effect in effects:
            if isinstance(effect, ev.Assign):
                if room == 0:
                    left.append(effect)
                    continue
                room -= 1
            now_due.append(effect)
        answers = executor.execute(rollout, now_due)
        rollout, effects = run(rollout, [*answers, *events], now)
        events = ()
        if not effects:
            return rollout, room < MAX_ASSIGNED, left
    raise UnsettledRollout(f"rollout {rollout.id}: effects and answers do not come to an end")
