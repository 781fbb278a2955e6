"""Carrying out what a machine asks for, in the turn's transaction."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import BlobMissing, Blobs
from cloud.db.tables import Device
from cloud.db.tables import Release as ReleaseRow
from cloud.db.tables import Rollout as RolloutRow
from cloud.orchestrator import evidence
from cloud.orchestrator.crown import crown, uncrown
from cloud.orchestrator.raising import counter_of, raised
from cloud.orchestrator.twins import desired_of, set_model, set_trial
from cloud.publish import publish_release
from cloud.registry import audit
from cloud.signing import ImageRepository, SigningError
from cloud.signing.evidence import EvidenceKey
from fleet.rollouts import events as ev
from fleet.rollouts.model import (
    ACTIVE_STATES,
    AssignmentPhase,
    Previous,
    Release,
    Rollout,
    RolloutState,
)

log = logging.getLogger("skerry.orchestrator")

_DECIDED_HERE = frozenset({"orchestrator", "gate"})
"""Actors whose changes of state nobody else writes to the audit."""


FETCHED = 500
"""Devices of one query."""


@dataclass
class Executor:
    """Executes effects of any rollout within one transaction.

    Attributes:
        taken: rollout → devices that a newer assignment took from it during this turn.
        superseded: rollout → what newer rollouts that began during this turn want of it.
    """

    session: Session
    blobs: Blobs
    image_repository: ImageRepository
    evidence_key: EvidenceKey
    now: float
    taken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    superseded: dict[str, list[ev.Event]] = field(default_factory=lambda: defaultdict(list))
    _devices: dict[str, Device] = field(default_factory=dict)
    _releases: dict[str, ReleaseRow] = field(default_factory=dict)

    def execute(self, rollout: Rollout, effects: Sequence[ev.Effect]) -> list[ev.Event]:
        """Carry out `effects` in order; returns the machine's answers."""
        answers: list[ev.Event] = []
        self._fetch([each for each in effects if isinstance(each, ev.Assign | ev.Withdraw)])
        for effect in effects:
            match effect:
                case ev.Assign():
                    answers.append(self._assign(rollout, effect))
                case ev.Withdraw():
                    self._withdraw(rollout, effect)
                case ev.Supersede():
                    self._supersede(rollout, effect)
                case ev.PublishPrevious():
                    answers.append(self._publish_previous(effect))
                case ev.GateDecided():
                    self._record(rollout, effect)
                case ev.StateChanged():
                    self._state_changed(rollout, effect)
        return answers

    def _fetch(self, effects: Sequence[ev.Assign | ev.Withdraw]) -> None:
        """Read the releases, and read and lock the devices, many at once, in one order for all."""
        assigned = [each.release for each in effects if isinstance(each, ev.Assign)]
        restored = [
            each.previous.release
            for each in effects
            if isinstance(each, ev.Withdraw) and each.previous is not None
        ]
        targets = {release.target for release in (*assigned, *restored)}
        if targets:
            found = self.session.scalars(select(ReleaseRow).where(ReleaseRow.target.in_(targets)))
            self._releases.update({row.target: row for row in found})
        ids = sorted({each.device for each in effects})
        for start in range(0, len(ids), FETCHED):
            some = select(Device).where(Device.id.in_(ids[start : start + FETCHED]))
            rows = self.session.scalars(
                some.order_by(Device.id).with_for_update().execution_options(populate_existing=True)
            )
            self._devices.update({row.id: row for row in rows})

    def _assign(self, rollout: Rollout, effect: ev.Assign) -> ev.Event:
        device = self._devices.get(effect.device)
        release = self._releases.get(effect.release.target)
        signed = release is not None and not release.awaiting
        if device is None or device.revoked or release is None or not signed:
            reason = "revoked" if signed else "no such release"
            return ev.Dropped(device=effect.device, phase=AssignmentPhase.CANCELLED, reason=reason)
        model = rollout.plan.model
        known = desired_of(device).models.get(model)
        previous = None
        if known is not None:
            previous = Previous(
                release=Release(target=known.target, version=known.version, counter=known.counter),
                rollout=known.rollout,
            )
        if rollout.plan.is_trial:
            return self._try(rollout, device, release, previous)
        own = self.raised(release, counter_of(device, model))
        if own is None:
            return ev.Dropped(
                device=device.id, phase=AssignmentPhase.CANCELLED, reason="has a newer release"
            )
        self._take(rollout, device, None if known is None else known.rollout)
        generation = set_model(
            self.session,
            device,
            model,
            own,
            rollout=rollout.id,
            probation_s=rollout.plan.probation_s,
            now=self.now,
        )
        return ev.Assigned(
            device=device.id,
            generation=generation,
            previous=previous,
            release=(
                Release(target=own.target, version=own.version, counter=own.counter)
                if own is not release
                else None
            ),
        )

    def raised(self, release: ReleaseRow, counter: int) -> ReleaseRow | None:
        """The release, if need be under a higher counter; None where that cannot be published."""
        try:
            return raised(self.session, self.blobs, self.image_repository, release, counter)
        except (BlobMissing, SigningError) as error:
            log.error("release.not_republished target=%s reason=%s", release.target, error)
            return None

    def _try(
        self, rollout: Rollout, device: Device, release: ReleaseRow, previous: Previous | None
    ) -> ev.Event:
        """Have a device try a release beside what it has."""
        if previous is not None and previous.release.target == release.target:
            return ev.Dropped(
                device=device.id, phase=AssignmentPhase.CANCELLED, reason="has this version"
            )
        self._take(rollout, device)
        generation = set_trial(
            self.session,
            device,
            rollout.plan.model,
            release,
            rollout=rollout.id,
            probation_s=rollout.plan.probation_s,
            mode="ab" if rollout.plan.mode == "ab" else "shadow",
            share=rollout.plan.share,
            now=self.now,
        )
        return ev.Assigned(device=device.id, generation=generation, previous=previous)

    def _take(self, rollout: Rollout, device: Device, before: str | None = None) -> None:
        """Note from which rollouts this one takes a device.

        Args:
            before: what had put there the version that is to be replaced.
        """
        trial = desired_of(device).trials.get(rollout.plan.model)
        for other in {before, None if trial is None else trial.rollout} - {None, rollout.id}:
            if other is not None:
                self.taken[other].append(device.id)

    def _withdraw(self, rollout: Rollout, effect: ev.Withdraw) -> None:
        device = self._devices.get(effect.device)
        if device is None:
            return
        if rollout.plan.is_trial:
            trial = desired_of(device).trials.get(rollout.plan.model)
            if trial is not None and trial.generation == effect.generation:
                set_trial(self.session, device, rollout.plan.model, None, now=self.now)
            return
        known = desired_of(device).models.get(rollout.plan.model)
        if known is None or known.generation != effect.generation:
            return  # something newer stands there
        before = effect.previous
        set_model(
            self.session,
            device,
            rollout.plan.model,
            self._releases.get(before.release.target) if before is not None else None,
            rollout=before.rollout if before is not None else None,
            probation_s=rollout.plan.probation_s,
            now=self.now,
        )

    def _supersede(self, rollout: Rollout, effect: ev.Supersede) -> None:
        """Only rollouts that were created before this one; a newer one waits for its own start."""
        row = self.session.get(RolloutRow, rollout.id)
        if row is None:
            return
        older = select(RolloutRow.id).where(
            RolloutRow.model == row.model,
            RolloutRow.created_at < row.created_at,
            RolloutRow.state.in_([state.value for state in ACTIVE_STATES]),
        )
        event = ev.Superseded(devices=effect.devices, by=rollout.id)
        for rollout_id in self.session.scalars(older):
            self.superseded[rollout_id].append(event)

    def _publish_previous(self, effect: ev.PublishPrevious) -> ev.Event:
        releases: dict[str, Release] = {}
        for target in effect.targets:
            old = self.session.get(ReleaseRow, target)
            if old is None:
                return ev.RollbackImpossible(reason=f"no release {target}")
            try:
                new = publish_release(
                    self.session,
                    self.blobs,
                    self.image_repository,
                    old.model,
                    old.version,
                    old.profile,
                    old.bundle_sha,
                )
            except (BlobMissing, SigningError) as error:
                return ev.RollbackImpossible(reason=str(error)[:300])
            releases[target] = Release(target=new.target, version=new.version, counter=new.counter)
            log.info("release.republished old=%s new=%s", target, new.target)
        return ev.RollbackReady(releases=releases)

    def _record(self, rollout: Rollout, effect: ev.GateDecided) -> None:
        evidence.record(self.session, self.evidence_key, rollout.id, effect, self.now)

    def _state_changed(self, rollout: Rollout, effect: ev.StateChanged) -> None:
        log.info(
            "rollout.state id=%s before=%s after=%s reason=%r",
            rollout.id,
            effect.before,
            effect.after,
            effect.reason,
        )
        if effect.actor in _DECIDED_HERE:
            audit.append(
                self.session,
                effect.actor,
                f"rollout.{effect.after.lower()}",
                rollout.id,
                {
                    "reason": effect.reason,
                    "before": effect.before.value,
                    "evidence": evidence.head(self.session, rollout.id),
                },
                at=self.now,
            )
        if effect.after is RolloutState.COMPLETED:
            crown(self.session, rollout, self.now)
        elif effect.after is RolloutState.ROLLED_BACK:
            uncrown(self.session, rollout, self.now)
