"""What is known about a champion, gathered from the control plane's tables.

Accuracy in the field is estimated on the newest uniform samples of the champion alone, each
weighted by one over its inclusion probability (devices may sample at different rates).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud import labels
from cloud.db.tables import (
    DatasetVersion,
    Device,
    Job,
    Label,
    ModelVersion,
    Release,
    Sample,
    Variant,
)
from cloud.drift import newest_fleet_report
from cloud.retrain.policy import RetrainFacts, RetrainPolicy, Share

_WAITING = ("candidate", "approved", "published")
_RUNNING = ("queued", "running")


def gather(session: Session, champion: ModelVersion, policy: RetrainPolicy) -> RetrainFacts:
    """Facts about one champion."""
    samples = session.scalars(
        select(Sample)
        .where(
            Sample.model == champion.model,
            Sample.version == champion.version,
            Sample.policy == "uniform",
        )
        .order_by(Sample.taken_at.desc(), Sample.id)
        .limit(policy.window)
    ).all()
    holding = labels.of_samples(session, champion.project, samples)
    report = newest_fleet_report(session, champion.model, champion.version)
    retrains = (Job.kind == "retrain") & (Job.project == champion.project)
    return RetrainFacts(
        model=champion.model,
        version=champion.version,
        baseline_accuracy=_baseline(session, champion, samples),
        audited=_share(
            [
                (1 / sample.inclusion_prob, holding[sample.id].label == sample.predicted)
                for sample in samples
                if sample.id in holding and holding[sample.id].source == "human"
            ]
        ),
        reported=_share(
            [(1 / sample.inclusion_prob, not _corrected(sample, holding)) for sample in samples]
        ),
        drift=cast("Literal['ok', 'drift', 'insufficient']", report.verdict) if report else None,
        new_labels=_new_labels(session, champion),
        last_retrain_at=session.scalar(select(func.max(Job.created_at)).where(retrains)),
        job_running=session.scalar(select(Job.id).where(retrains, Job.state.in_(_RUNNING)).limit(1))
        is not None,
        waiting_version=session.scalar(
            select(func.max(ModelVersion.version)).where(
                ModelVersion.model == champion.model,
                ModelVersion.version > champion.version,
                ModelVersion.state.in_(_WAITING),
            )
        ),
    )


def _corrected(sample: Sample, holding: dict[str, Label]) -> bool:
    """Whether a person says that the answer was wrong."""
    label = holding.get(sample.id)
    return (
        label is not None
        and label.source in labels.HUMAN_SOURCES
        and label.label != sample.predicted
    )


def _share(weighted: Sequence[tuple[float, bool]]) -> Share:
    """Weighted share of right answers, at the effective sample size (Σw)²/Σw².

    Source: L. Kish, Survey Sampling (1965).
    """
    total = sum(weight for weight, _ in weighted)
    if total <= 0:
        return Share()
    n = total**2 / sum(weight**2 for weight, _ in weighted)
    return Share(right=n * sum(weight for weight, right in weighted if right) / total, n=n)


def _baseline(session: Session, champion: ModelVersion, samples: Sequence[Sample]) -> float | None:
    """The version's own accuracy, averaged over the profiles as they occur among `samples`."""
    of_version = (Variant.model == champion.model) & (Variant.version == champion.version)
    accuracy: dict[str, float] = {}
    for variant in session.scalars(select(Variant).where(of_version, Variant.selected.is_(True))):
        if "accuracy" in variant.accuracy:
            accuracy[variant.profile] = float(variant.accuracy["accuracy"])
    released = session.execute(
        select(Release.profile, Variant.accuracy)
        .join(
            Variant,
            (Variant.bundle_sha == Release.bundle_sha)
            & (Variant.profile == Release.profile)
            & (Variant.model == Release.model)
            & (Variant.version == Release.version),
        )
        .where(Release.model == champion.model, Release.version == champion.version)
        .where(Release.awaiting.is_(False))
        .order_by(Release.counter)
    )
    for profile, judged in released:
        if "accuracy" in judged:
            accuracy[profile] = float(judged["accuracy"])
    devices = session.execute(select(Device.id, Device.profile))
    profiles: dict[str, str] = {row.id: row.profile for row in devices}
    found = [
        accuracy[profiles[sample.device]]
        for sample in samples
        if profiles.get(sample.device) in accuracy
    ]
    if not found:
        found = list(accuracy.values())
    return sum(found) / len(found) if found else None


def _new_labels(session: Session, champion: ModelVersion) -> int:
    """Sampled predictions that a person labelled after the champion's dataset was made."""
    dataset = session.get(DatasetVersion, champion.dataset)
    since = dataset.created_at if dataset is not None else 0.0
    labelled = select(Label.prediction_id).where(
        Label.project == champion.project,
        Label.source.in_(labels.HUMAN_SOURCES),
        Label.at > since,
    )
    predictions = (
        select(Sample.device, Sample.prediction_id)
        .where(Sample.model == champion.model, Sample.prediction_id.in_(labelled))
        .distinct()
    )
    return session.scalar(select(func.count()).select_from(predictions.subquery())) or 0
