"""Lineage: from a version back to everything that it was made of."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import (
    DatasetVersion,
    GateDecision,
    Job,
    ModelVersion,
    Promotion,
    Release,
    Variant,
)
from cloud.registry.errors import UnknownVersion
from cloud.registry.models import subject


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a version was made of, and what became of it.

    Attributes:
        version: the version itself; its `code_sha` names the blob with the project's files.
        ancestors: numbers of the versions that it replaced, newest first.
        datasets: its dataset version, then that one's parents, newest first.
        job: the job that built it; `None` when the job's record is gone.
        gates, promotions: oldest first.
    """

    version: ModelVersion
    ancestors: tuple[int, ...]
    datasets: tuple[DatasetVersion, ...]
    job: Job | None
    variants: tuple[Variant, ...]
    gates: tuple[GateDecision, ...]
    promotions: tuple[Promotion, ...]
    releases: tuple[Release, ...]


def lineage(session: Session, model: str, version: int) -> Lineage:
    """Gather the lineage of one version.

    Raises:
        UnknownVersion: there is none.
    """
    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise UnknownVersion(model, version)
    return Lineage(
        version=row,
        ancestors=_ancestors(session, row),
        datasets=_datasets(session, row.dataset),
        job=session.get(Job, row.job),
        variants=tuple(
            session.scalars(
                select(Variant)
                .where(Variant.model == model, Variant.version == version)
                .order_by(Variant.id)
            )
        ),
        gates=tuple(
            session.scalars(
                select(GateDecision)
                .where(GateDecision.subject == subject(model, version))
                .order_by(GateDecision.id)
            )
        ),
        promotions=tuple(
            session.scalars(
                select(Promotion)
                .where(Promotion.model == model, Promotion.version == version)
                .order_by(Promotion.id)
            )
        ),
        releases=tuple(
            session.scalars(
                select(Release)
                .where(Release.model == model, Release.version == version)
                .order_by(Release.counter)
            )
        ),
    )


def _ancestors(session: Session, row: ModelVersion) -> tuple[int, ...]:
    found: list[int] = []
    parent = row.parent_version
    while parent is not None and parent not in found:
        found.append(parent)
        parent_row = session.get(ModelVersion, (row.model, parent))
        parent = parent_row.parent_version if parent_row is not None else None
    return tuple(found)


def _datasets(session: Session, dataset: str) -> tuple[DatasetVersion, ...]:
    found: list[DatasetVersion] = []
    current = session.get(DatasetVersion, dataset)
    while current is not None and current not in found:
        found.append(current)
        current = session.get(DatasetVersion, current.parent) if current.parent else None
    return tuple(found)
