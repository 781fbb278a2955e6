"""What people ask of rollouts, within the transaction of the API.

The machine is stepped at once, so the answer shows the new state; effects wait for the
orchestrator's next turn.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, Device, ModelVersion
from cloud.db.tables import Release as ReleaseRow
from cloud.db.tables import Rollout as RolloutRow
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.figures import failure_history
from cloud.orchestrator.stored import UnreadableRollout, load, lock, save
from cloud.orchestrator.twins import desired_of
from edge_agent.wire.base import describe
from fleet.client.schemas import RolloutIn
from fleet.devices.select import DeviceFilter, DeviceRef
from fleet.rollouts import events as ev
from fleet.rollouts.machine import VERBS, step
from fleet.rollouts.model import ACTIVE_STATES, GateSpec, Plan, Release, WavePlan
from fleet.rollouts.plan import PlanError, draft

_ROLLED_OUT = frozenset({"published", "champion"})
_MAX_REACH_TIMEOUT_S = 60.0

_Command = ev.Approved | ev.Pause | ev.Resume | ev.Cancel | ev.Halt | ev.Rollback

_EVENTS: Mapping[str, Callable[..., _Command]] = {
    "approve": ev.Approved,
    "pause": ev.Pause,
    "resume": ev.Resume,
    "cancel": ev.Cancel,
    "halt": ev.Halt,
    "rollback": ev.Rollback,
}


def create_rollout(
    session: Session, request: RolloutIn, actor: str, *, now: float | None = None
) -> RolloutRow:
    """Freeze the devices of a rollout, put them into waves, and start it.

    Raises:
        NotFound: no such version.
        Conflict: it is not published, is behind what devices have, or a rollout of the same or a
            newer version has some of these devices.  One of an older version is superseded.
        UserError: no release or no device matches, or the waves cannot be carried out.
    """
    at = time.time() if now is None else now
    model, version = request.model, request.version
    require_published(session, model, version)
    every = newest_releases(session, model, version)
    releases = _chosen(every, request)
    devices = _devices(session, request, frozenset(releases))
    refuse_overlap(session, model, devices, version)
    refuse_older(model, version, releases, devices)
    rollout_id = f"{model[:40]}-{version}-{secrets.token_hex(3)}"
    try:
        rollout = draft(
            rollout_id,
            Plan(
                model=model,
                version=version,
                releases={
                    profile: Release(target=each.target, version=each.version, counter=each.counter)
                    for profile, each in releases.items()
                },
                gate=GateSpec(
                    min_responders=request.min_responders,
                    max_failure_rate=request.max_failure_rate,
                ),
                probation_s=request.probation_s,
                phase_timeout_s=request.phase_timeout_s,
                reach_timeout_s=min(request.phase_timeout_s, _MAX_REACH_TIMEOUT_S),
                history=failure_history(session, model, devices),
            ),
            [WavePlan.model_validate(wave.model_dump()) for wave in request.waves],
            [_ref(device) for device in devices],
        )
    except ValidationError as error:
        raise UserError(f"rollout: {describe(error)}") from error
    except PlanError as error:
        raise UserError(str(error)) from error
    everyone = not request.labels and set(releases) == set(every)
    whole = everyone and len(rollout.assignments) == len(devices)
    rollout = rollout.model_copy(
        update={"plan": rollout.plan.model_copy(update={"whole_fleet": whole})}
    )
    rollout, effects = step(rollout, ev.Started(), at)
    stored = RolloutRow(
        id=rollout_id,
        model=model,
        version=version,
        state=rollout.state.value,
        plan=request.model_dump(mode="json"),
        machine={},
        created_by=actor,
        created_at=at,
        updated_at=at,
    )
    session.add(stored)
    session.flush()
    save(session, stored, None, rollout, effects, at)
    session.flush()
    return stored


def command_rollout(
    session: Session, rollout_id: str, verb: str, actor: str, *, now: float | None = None
) -> RolloutRow:
    """approve, pause, resume, cancel, halt or roll back; resuming accepts an inconclusive wave.

    Raises:
        NotFound: no such rollout.
        UserError: no such verb.
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
    if before.state not in VERBS[verb]:
        needed = ", ".join(sorted(VERBS[verb]))
        raise Conflict(f"rollout {rollout_id} is {before.state}; {verb} needs {needed}")
    after, effects = step(before, event_of(actor=actor), at)
    save(session, row, before, after, (*stored.pending, *effects), at)
    session.flush()
    return row


def require_published(session: Session, model: str, version: int) -> None:
    """
    Raises:
        NotFound, Conflict: there is no such version, or it is not published.
    """
    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise NotFound(f"no version {version} of model {model!r}")
    if row.state == "approved" and _awaits_signatures(session, model, version):
        raise Conflict(
            f"{model}:{version} awaits signatures of offline keys ('skerry keys request'); "
            "only a published version is rolled out"
        )
    if row.state not in _ROLLED_OUT:
        raise Conflict(f"{model}:{version} is {row.state}; only a published version is rolled out")


def newest_releases(session: Session, model: str, version: int) -> dict[str, ReleaseRow]:
    """Profile → the version's signed release with the highest counter."""
    rows = session.scalars(
        select(ReleaseRow)
        .where(
            ReleaseRow.model == model,
            ReleaseRow.version == version,
            ReleaseRow.awaiting.is_(False),
        )
        .order_by(ReleaseRow.counter)
    )
    return {row.profile: row for row in rows}


def _awaits_signatures(session: Session, model: str, version: int) -> bool:
    query = select(ReleaseRow.target).where(
        ReleaseRow.model == model, ReleaseRow.version == version, ReleaseRow.awaiting.is_(True)
    )
    return session.scalar(query.limit(1)) is not None


def _chosen(every: dict[str, ReleaseRow], request: RolloutIn) -> dict[str, ReleaseRow]:
    if not every:
        raise UserError(f"{request.model}:{request.version} has no release; publish it first")
    missing = sorted(set(request.profiles) - set(every))
    if missing:
        raise UserError(
            f"{request.model}:{request.version} has no release for {', '.join(missing)}; "
            f"there are {', '.join(sorted(every))}"
        )
    wanted = set(request.profiles) or set(every)
    return {profile: release for profile, release in every.items() if profile in wanted}


def _devices(session: Session, request: RolloutIn, profiles: frozenset[str]) -> list[Device]:
    rows = session.scalars(
        select(Device).where(Device.profile.in_(profiles), Device.revoked.is_(False))
    ).all()
    meant = DeviceFilter(profiles, request.labels)
    devices = [device for device in rows if meant.matches(_ref(device))]
    if not devices:
        labels = " ".join(f"{key}={value}" for key, value in sorted(request.labels.items()))
        raise UserError(
            f"no device of profile {', '.join(sorted(profiles))} matches"
            + (f" labels {labels}" if labels else "")
        )
    return devices


def refuse_overlap(
    session: Session, model: str, devices: Sequence[Device], version: int | None = None
) -> None:
    """
    Args:
        version: what is to come; rollouts of older versions give way to it.

    Raises:
        Conflict: a rollout of the model that goes on has one of the devices.
    """
    active = [state.value for state in ACTIVE_STATES]
    meant = {device.id for device in devices}
    rows = session.execute(
        select(Assignment.rollout, Assignment.device)
        .join(RolloutRow, RolloutRow.id == Assignment.rollout)
        .where(
            RolloutRow.model == model,
            RolloutRow.state.in_(active),
            RolloutRow.version >= (0 if version is None else version),
        )
    )
    for rollout, device in rows:
        if device in meant:
            raise Conflict(f"rollout {rollout} has {device} already; cancel or halt it first")


def refuse_older(
    model: str, version: int, releases: dict[str, ReleaseRow], devices: Sequence[Device]
) -> None:
    """A device never goes back to a lower counter, so offering one would only fail.

    Raises:
        Conflict: a device had a newer release than its own of `releases`, by profile.
    """
    ahead = 0
    for device in devices:
        known = desired_of(device).models.get(model)
        ahead += known is not None and known.counter > releases[device.profile].counter
    if ahead:
        raise Conflict(
            f"{ahead} device{'s' * (ahead != 1)} had a newer release than that of "
            f"{model}:{version}; publish {model}:{version} again, or roll the newer one back"
        )


def _ref(device: Device) -> DeviceRef:
    return DeviceRef(device.id, device.profile, device.labels, device.revoked)
