"""Adding labels, and finding the one that holds.  See the package for the rules."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Label, Sample

Source = Literal["correction", "human", "auto"]
"""Who says so: a user in the field, an annotator who was asked, or a machine."""

HUMAN_SOURCES: frozenset[str] = frozenset({"correction", "human"})

_BATCH = 500
"""Ids a query; SQLite bounds the variables of a statement."""


class UnknownSource(ValueError):
    """A label comes from a correction, a human or a machine."""


def add(
    session: Session,
    project: str,
    prediction_id: str,
    label: str,
    source: Source,
    *,
    device: str | None = None,
    confidence: float = 1.0,
    model_version: int | None = None,
    at: float | None = None,
) -> Label:
    """Append a label to the session's transaction.

    Args:
        label: the class's name.
        confidence: in [0, 1].
        model_version: the version that answered, or that labelled when `source` is "auto".
        at: seconds since the epoch; now when left out.

    Raises:
        UnknownSource: `source` is none of the three.
    """
    if source not in get_args(Source):
        raise UnknownSource(f"a label's source is one of {', '.join(get_args(Source))}")
    row = Label(
        project=project,
        prediction_id=prediction_id,
        device=device,
        label=label,
        source=source,
        confidence=confidence,
        model_version=model_version,
        at=time.time() if at is None else at,
    )
    session.add(row)
    session.flush()
    return row


def newest(session: Session, project: str, prediction_ids: Iterable[str]) -> dict[str, Label]:
    """The label that holds for each prediction; predictions without one are left out.

    Clients may choose prediction ids, so two devices can use the same one: where samples are at
    hand, `of_samples` is exact.
    """
    found: dict[str, Label] = {}
    for row in _labels(session, project, prediction_ids):
        _hold(found, row.prediction_id, row)
    return found


def of_samples(session: Session, project: str, samples: Sequence[Sample]) -> dict[str, Label]:
    """The label that holds for each sample, by sample id; samples without one are left out.

    A label that names its device holds for that device's predictions alone.
    """
    by_prediction: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_prediction[sample.prediction_id].append(sample)
    found: dict[str, Label] = {}
    for row in _labels(session, project, by_prediction):
        for sample in by_prediction[row.prediction_id]:
            if row.device is None or row.device == sample.device:
                _hold(found, sample.id, row)
    return found


def _labels(session: Session, project: str, prediction_ids: Iterable[str]) -> Iterator[Label]:
    """All labels of these predictions; those of one prediction oldest first."""
    remaining = iter(sorted(set(prediction_ids)))
    while batch := list(islice(remaining, _BATCH)):
        yield from session.scalars(
            select(Label)
            .where(Label.project == project, Label.prediction_id.in_(batch))
            .order_by(Label.at, Label.id)
        )


def _hold(found: dict[str, Label], key: str, label: Label) -> None:
    held = found.get(key)
    if held is None or _rank(label) >= _rank(held):
        found[key] = label


def _rank(label: Label) -> int:
    return 1 if label.source in HUMAN_SOURCES else 0
