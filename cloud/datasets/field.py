"""Field samples and their labels, collected into a new dataset version.

The new version holds all rows of its base and every labelled sample of the model that the base
lacks.  Rules:
    * only a person's label counts, the newest one;
    * one row a prediction and one row an input; an input that the base has stays as it is there,
      so nothing frozen or held out can slip into training;
    * a share of the new rows, by the hash of the input, becomes the split "field": held out, never
      trained on in any later version either;
    * samples that cannot be used (several rows in a request, tensors dropped by a privacy hook, an
      unknown class, bytes that do not decode) are counted and left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import labels
from cloud.blobs import BlobMissing, Blobs
from cloud.datasets.errors import BadSample, NothingCollected
from cloud.datasets.rows import classes_of, share, tabulate
from cloud.datasets.samples import decode_sample
from cloud.datasets.tensors import Tensors, concatenate, datatype_of, row_digests, rows_of
from cloud.datasets.versions import create, read_table, tensor_specs
from cloud.db.tables import DatasetVersion, Label, Sample
from edge_agent.wire.samples import SampleHeader

log = logging.getLogger("skerry.datasets")

FIELD_SEED = 0x5EED
"""Seed of the hold-out's hash; fixed, so that a row never changes its split."""

_POLICY_ORDER = {"uniform": 0, "uncertain": 1, "event": 2}


@dataclass(frozen=True, slots=True)
class _Row:
    prediction_id: str
    tensors: Tensors
    label: int
    row_sha: str


def collect_field(
    session: Session,
    blobs: Blobs,
    project: str,
    model: str,
    base_dataset: str,
    *,
    holdout_share: float = 0.3,
    weight: float = 1.0,
    note: str = "",
    at: float | None = None,
) -> DatasetVersion:
    """Make a dataset version of `base_dataset` and the labelled field samples of `model`.

    Args:
        base_dataset: id of the version to build on; its rows are kept as they are.
        holdout_share: share of the new rows that is held out as split "field", in [0, 1).
        weight: weight of a field row in training; an imported row has 1.

    Raises:
        UnknownDataset: there is no such base.
        NothingCollected: no labelled sample is new.
    """
    base = read_table(session, blobs, base_dataset)
    skipped: Counter[str] = Counter()
    rows = _labelled_rows(session, blobs, project, model, base, skipped)
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise NothingCollected(
            f"no labelled sample of {model!r} is new to dataset {base_dataset[:12]}"
            + (f" (left out: {why})" if why else "")
        )
    split = ["field" if share(row.row_sha, FIELD_SEED) < holdout_share else "train" for row in rows]
    added = tabulate(
        concatenate([row.tensors for row in rows]),
        [row.label for row in rows],
        classes=classes_of(base),
        split=split,
        source="field",
        prediction_ids=[row.prediction_id for row in rows],
        weight=weight,
    )
    version = create(
        session,
        blobs,
        project,
        "labelled",
        pa.concat_tables([base, added.cast(base.schema)]),
        parent=base_dataset,
        note=note or f"{len(rows)} labelled field samples of {model}",
        at=at,
    )
    log.info(
        "dataset.field_collected project=%s model=%s dataset=%s added=%d held_out=%d skipped=%d",
        project, model, version.id, len(rows), split.count("field"), skipped.total(),
    )  # fmt: skip
    return version


def labelled_predictions(session: Session, project: str, model: str) -> list[tuple[Sample, Label]]:
    """Samples of a model that a person labelled, one a prediction, oldest first.

    Of several samples of one prediction the uniform one is taken.
    """
    samples: dict[str, Sample] = {}
    for sample in session.scalars(
        select(Sample).where(Sample.model == model).order_by(Sample.taken_at, Sample.id)
    ):
        held = samples.get(sample.prediction_id)
        if held is None or _POLICY_ORDER[sample.policy] < _POLICY_ORDER[held.policy]:
            samples[sample.prediction_id] = sample
    holding = labels.newest(session, project, samples)
    return [
        (sample, holding[prediction])
        for prediction, sample in samples.items()
        if prediction in holding and holding[prediction].source in labels.HUMAN_SOURCES
    ]


def _labelled_rows(
    session: Session,
    blobs: Blobs,
    project: str,
    model: str,
    base: pa.Table,
    skipped: Counter[str],
) -> list[_Row]:
    index = {name: position for position, name in enumerate(classes_of(base))}
    specs = tensor_specs(base.schema)
    wanted = {spec["name"]: (spec["datatype"], tuple(spec["shape"][1:])) for spec in specs}
    seen_inputs = set(base.column("row_sha").to_pylist())
    seen_predictions = set(base.column("prediction_id").to_pylist())
    rows: list[_Row] = []
    for sample, label in labelled_predictions(session, project, model):
        if sample.prediction_id in seen_predictions:
            continue
        if label.label not in index:
            skipped["of an unknown class"] += 1
            continue
        try:
            tensors = decode_sample(
                SampleHeader.model_validate(sample.header), blobs.get(sample.blob)
            )
        except (BadSample, BlobMissing, ValidationError) as error:
            log.warning("dataset.bad_sample sample=%s error=%s", sample.id, type(error).__name__)
            skipped["undecodable"] += 1
            continue
        found = {name: (datatype_of(a.dtype), a.shape[1:]) for name, a in tensors.items()}
        if found != wanted or rows_of(tensors) != 1:
            skipped["of another shape"] += 1
            continue
        row_sha = row_digests(tensors)[0]
        if row_sha in seen_inputs:
            continue
        seen_inputs.add(row_sha)
        rows.append(_Row(sample.prediction_id, tensors, index[label.label], row_sha))
    return rows
