"""Versions of a model: numbers, states, promotions.

    candidate ──► approved ──► published ──► champion ──► retired
        │             │            │             ▲           │
        └──────► rejected ◄────────┘             └───────────┘  (a roll-back)

Rules:
    * A version number is reserved for one job before its bundles are built, and never reused.
    * Registering again by the same job changes nothing, so a restarted step is harmless.
    * Every change of state appends a `Promotion` and an audit entry in the same transaction.
    * A model has at most one champion: a new one retires the old.
    * A version whose newest decision of any gate is "fail" cannot be approved unless the caller
      says `override=True`, which the audit shows.  "insufficient" is a person's to judge.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import GateDecision, ModelVersion, Promotion, Setting, Variant
from cloud.gates.results import GateResult
from cloud.registry import audit
from cloud.registry.errors import GatesFailed, NotAllowed, UnknownVersion, VersionTaken

log = logging.getLogger("skerry.registry")

State = Literal["candidate", "approved", "published", "champion", "rejected", "retired"]

ALLOWED: Mapping[str, tuple[State, ...]] = {
    "candidate": ("approved", "rejected"),
    "approved": ("published", "rejected"),
    "published": ("champion", "rejected", "retired"),
    "champion": ("retired",),
    "retired": ("champion",),
    "rejected": (),
}
"""Where each state may go."""


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """One candidate of the optimiser's frontier, as it is to be kept.

    Attributes:
        name: member and recipe, e.g. "small/ort-int8".
        verdict: "PASS", "FAIL", "INCONCLUSIVE" or "INVALID".
        measurement, accuracy: dumps of the optimiser's `Measurement` and `Accuracy`.
        bundle_sha: blob of the bundle, a tar; its length in bytes is `bundle_length`.
        predicted: it was never measured on its profile; its latency is an estimate.
    """

    profile: str
    name: str
    runtime: str
    verdict: str
    reason: str = ""
    selected: bool = False
    measurement: Mapping[str, JsonValue] = field(default_factory=dict)
    accuracy: Mapping[str, JsonValue] = field(default_factory=dict)
    bundle_sha: str | None = None
    bundle_length: int = 0
    predicted: bool = False


def subject(model: str, version: int) -> str:
    """How gate decisions and the audit name a version."""
    return f"model:{model}:{version}"


def reserve_version(session: Session, model: str, job: str, *, at: float | None = None) -> int:
    """The version number that `job` builds; the same number when the job asks again."""
    now = time.time() if at is None else at
    mine = session.get(Setting, f"registry.reserved:{model}:{job}")
    if mine is not None:
        return int(mine.value["version"])
    mark = session.get(Setting, f"registry.versions:{model}", with_for_update=True)
    if mark is None:
        mark = Setting(key=f"registry.versions:{model}", value={"last": 0}, updated_at=now)
        session.add(mark)
    newest = session.scalar(
        select(ModelVersion.version)
        .where(ModelVersion.model == model)
        .order_by(ModelVersion.version.desc())
        .limit(1)
    )
    version = max(int(mark.value["last"]), newest or 0) + 1
    mark.value = {"last": version}
    mark.updated_at = now
    session.add(
        Setting(key=f"registry.reserved:{model}:{job}", value={"version": version}, updated_at=now)
    )
    session.flush()
    return version


def register_candidate(
    session: Session,
    *,
    model: str,
    version: int,
    project: str,
    dataset: str,
    code_sha: str,
    job: str,
    metrics: Mapping[str, JsonValue],
    environment: Mapping[str, JsonValue],
    variants: Sequence[VariantRecord],
    gates: Sequence[GateResult] = (),
    parent_version: int | None = None,
    actor: str = "control-plane",
    at: float | None = None,
) -> ModelVersion:
    """Record a finished build as a candidate, with its frontier and its gates.

    Args:
        version: from `reserve_version`.
        dataset: id of the dataset version that it was trained and judged on.
        parent_version: the champion that it is to replace; `None` for a first version.

    Raises:
        VersionTaken: another job registered this number.
    """
    now = time.time() if at is None else at
    existing = session.get(ModelVersion, (model, version))
    if existing is not None:
        if existing.job != job:
            raise VersionTaken(model, version, existing.job)
        return existing
    row = ModelVersion(
        model=model,
        version=version,
        project=project,
        state="candidate",
        dataset=dataset,
        code_sha=code_sha,
        job=job,
        parent_version=parent_version,
        metrics=dict(metrics),
        environment=dict(environment),
        created_at=now,
    )
    session.add(row)
    for variant in variants:
        session.add(
            Variant(
                model=model,
                version=version,
                profile=variant.profile,
                name=variant.name,
                runtime=variant.runtime,
                verdict=variant.verdict,
                reason=variant.reason,
                selected=variant.selected,
                measurement=dict(variant.measurement),
                accuracy=dict(variant.accuracy),
                bundle_sha=variant.bundle_sha,
                bundle_length=variant.bundle_length,
                predicted=variant.predicted,
            )
        )
    record_gates(session, subject(model, version), gates, at=now)
    _promote(session, row, "", "candidate", actor, f"registered by job {job}", now, {})
    return row


def record_gates(
    session: Session, of: str, results: Sequence[GateResult], *, at: float | None = None
) -> None:
    """Append gate decisions about subject `of` (see `subject`)."""
    now = time.time() if at is None else at
    for result in results:
        session.add(
            GateDecision(
                subject=of,
                gate=result.gate,
                verdict=result.verdict,
                reason=result.reason,
                evidence=dict(result.evidence),
                at=now,
            )
        )
    session.flush()


def transition(
    session: Session,
    model: str,
    version: int,
    to_state: State,
    actor: str,
    reason: str = "",
    *,
    override: bool = False,
    at: float | None = None,
) -> ModelVersion:
    """Move a version to another state.

    Asking for the state that it has already is a no-op.

    Raises:
        UnknownVersion: there is none.
        NotAllowed: `ALLOWED` does not lead there.
        GatesFailed: approval of a version that failed a gate, without `override`.
    """
    now = time.time() if at is None else at
    row = session.get(ModelVersion, (model, version), with_for_update=True)
    if row is None:
        raise UnknownVersion(model, version)
    if row.state == to_state:
        return row
    allowed = ALLOWED.get(row.state, ())
    if to_state not in allowed:
        raise NotAllowed(model, version, row.state, to_state, allowed)
    detail: dict[str, JsonValue] = {}
    if to_state == "approved":
        failed = failed_gates(session, model, version)
        if failed and not override:
            raise GatesFailed(model, version, failed)
        if failed:
            detail["overridden_gates"] = list(failed)
    if to_state == "champion":
        previous = champion(session, model)
        if previous is not None:
            because = f"version {version} took over"
            _promote(session, previous, previous.state, "retired", actor, because, now, {})
    _promote(session, row, row.state, to_state, actor, reason, now, detail)
    return row


def champion(session: Session, model: str) -> ModelVersion | None:
    """The version that the fleet is meant to serve."""
    return session.scalar(
        select(ModelVersion).where(ModelVersion.model == model, ModelVersion.state == "champion")
    )


def failed_gates(session: Session, model: str, version: int) -> tuple[str, ...]:
    """Gates whose newest decision about this version is "fail"."""
    decisions = session.scalars(
        select(GateDecision)
        .where(GateDecision.subject == subject(model, version))
        .order_by(GateDecision.id)
    )
    newest = {decision.gate: decision.verdict for decision in decisions}
    return tuple(sorted(gate for gate, verdict in newest.items() if verdict == "fail"))


def _promote(
    session: Session,
    row: ModelVersion,
    from_state: str,
    to_state: State,
    actor: str,
    reason: str,
    at: float,
    detail: dict[str, JsonValue],
) -> None:
    row.state = to_state
    session.add(
        Promotion(
            model=row.model,
            version=row.version,
            from_state=from_state,
            to_state=to_state,
            actor=actor,
            reason=reason,
            at=at,
        )
    )
    session.flush()
    audit.append(
        session,
        actor,
        f"model.{to_state}",
        subject(row.model, row.version),
        {"from": from_state, "reason": reason, **detail},
        at=at,
    )
    log.info("model.%s model=%s version=%d", to_state, row.model, row.version)
