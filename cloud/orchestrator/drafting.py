"""From a request to a rollout's first state: its releases, its devices, and what speaks against it.

Nothing is written here; `requests` stores what it makes, `planning` only shows it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Assignment, Device, ModelVersion, Project
from cloud.db.tables import Release as ReleaseRow
from cloud.db.tables import Rollout as RolloutRow
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.figures import failure_history
from cloud.orchestrator.selecting import Selection, ids_matching, ref, select_devices
from cloud.orchestrator.twins import desired_of
from edge_agent.wire.base import describe
from fleet.client.schemas import RolloutIn
from fleet.rollouts.model import ACTIVE_STATES, GateSpec, Plan, Release, Rollout, WavePlan
from fleet.rollouts.plan import PlanError, draft

_ROLLED_OUT = frozenset({"published", "champion"})
_MAX_REACH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Drafted:
    """A rollout that could start.

    Attributes:
        superseded: rollouts of older versions that have devices of it and go on.
    """

    rollout: Rollout
    selection: Selection
    superseded: Sequence[str]


def draft_rollout(
    session: Session, request: RolloutIn, actor: str, now: float, *, needs_approval: bool
) -> Drafted:
    """
    Args:
        needs_approval: the control plane's policy; the project's and the request's add to it.

    Raises:
        NotFound: no such version.
        Conflict: it is not published, is behind what devices have, or a rollout of the same or a
            newer version has some of these devices.  One of an older version is superseded.
        UserError: no release or no device matches, a query does not parse, or the waves cannot be
            carried out.
    """
    model, version = request.model, request.version
    known = require_published(session, model, version)
    every = newest_releases(session, model, version)
    releases = _chosen(every, request)
    selection = select_devices(session, request, releases, now)
    if not selection.devices:
        raise UserError(_nobody(request, releases))
    refuse_overlap(session, model, selection.devices, version)
    refuse_older(model, version, releases, selection.devices)
    try:
        rollout = draft(
            f"{model[:40]}-{version}-{secrets.token_hex(3)}",
            Plan(
                model=model,
                version=version,
                releases={
                    profile: Release(target=each.target, version=each.version, counter=each.counter)
                    for profile, each in releases.items()
                },
                gate=GateSpec.model_validate(
                    {
                        "min_responders": request.min_responders,
                        "max_failure_rate": request.max_failure_rate,
                        **request.gates,
                    }
                ),
                probation_s=request.probation_s,
                phase_timeout_s=request.phase_timeout_s,
                reach_timeout_s=min(request.phase_timeout_s, _MAX_REACH_TIMEOUT_S),
                start_at=request.start_at,
                windows=tuple(request.windows),
                time_zone=request.time_zone,
                created_by=actor,
                needs_approval=(
                    request.needs_approval or needs_approval or _asks_approval(session, known)
                ),
                approve_each_wave=request.approve_each_wave,
                on_failure=request.on_failure,
                mode=request.mode,
                share=0.0 if request.mode == "replace" else request.share,
                history=failure_history(session, model, selection.devices),
            ),
            [WavePlan.model_validate(wave.model_dump()) for wave in request.waves],
            [ref(device) for device in selection.devices],
            lambda text: ids_matching(session, text, now),
        )
    except ValidationError as error:
        raise UserError(f"rollout: {describe(error)}") from error
    except PlanError as error:
        raise UserError(str(error)) from error
    everyone = not request.labels and not request.query and set(releases) == set(every)
    whole = everyone and len(rollout.assignments) == len(selection.devices)
    rollout = rollout.model_copy(
        update={"plan": rollout.plan.model_copy(update={"whole_fleet": whole})}
    )
    return Drafted(rollout, selection, _superseded(session, rollout))


def require_published(session: Session, model: str, version: int) -> ModelVersion:
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
    return row


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
    model: str, version: int, releases: Mapping[str, ReleaseRow], devices: Sequence[Device]
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


def _awaits_signatures(session: Session, model: str, version: int) -> bool:
    query = select(ReleaseRow.target).where(
        ReleaseRow.model == model, ReleaseRow.version == version, ReleaseRow.awaiting.is_(True)
    )
    return session.scalar(query.limit(1)) is not None


def _asks_approval(session: Session, version: ModelVersion) -> bool:
    """Whether the version's project asks for a second person: `rollout: {needs_approval: true}`."""
    project = session.get(Project, version.project)
    wanted = (project.spec.get("rollout") or {}) if project is not None else {}
    return bool(wanted.get("needs_approval", False))


def _superseded(session: Session, rollout: Rollout) -> list[str]:
    rows = session.execute(
        select(Assignment.rollout, Assignment.device)
        .join(RolloutRow, RolloutRow.id == Assignment.rollout)
        .where(
            RolloutRow.model == rollout.plan.model,
            RolloutRow.version < rollout.plan.version,
            RolloutRow.state.in_([state.value for state in ACTIVE_STATES]),
        )
    )
    return sorted({older for older, device in rows if device in rollout.assignments})


def _chosen(every: Mapping[str, ReleaseRow], request: RolloutIn) -> dict[str, ReleaseRow]:
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


def _nobody(request: RolloutIn, profiles: Mapping[str, object]) -> str:
    labels = " ".join(f"{key}={value}" for key, value in sorted(request.labels.items()))
    return (
        f"no device of profile {', '.join(sorted(profiles))} matches"
        + (f" labels {labels}" if labels else "")
        + (" and" if labels and request.query else "")
        + (f" {request.query}" if request.query else "")
    )
