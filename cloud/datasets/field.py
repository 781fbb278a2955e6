"""Field samples and their labels, collected into a new dataset version.

The new version holds all rows of its base and every labelled sample of the model that the base
lacks.  Rules:
    * only a person's label counts, the newest one; a field row of the base that was labelled anew
      since then takes the new label;
    * one row a prediction and one row an input; an input that the base has keeps its split, so
      nothing frozen or held out can slip into training;
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
from cloud.datasets.tensors import Tensors, concatenate, datatype_of, row_digests
from cloud.datasets.versions import create, read_table, tensor_specs
from cloud.db.tables import DatasetVersion, Label, Sample
from edge_agent.wire.samples import SampleHeader

log = logging.getLogger("skerry.datasets")

FIELD_SEED = 0x5EED
"""Seed of the hold-out's hash; fixed, so that a row never changes its split."""

FIELD_SOURCE = "field"

_POLICY_ORDER = {"uniform": 0, "uncertain": 1, "event": 2}


@dataclass(frozen=True, slots=True)
class _Row:
    prediction_id: str
    tensors: Tensors
    label: int
    row_sha: str


@dataclass(frozen=True, slots=True)
class _Found:
    """New rows, new labels by row digest, and how many samples were left out, by reason."""

    added: list[_Row]
    relabelled: dict[str, str]
    skipped: Counter[str]


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
        base_dataset: id of the version to build on; its imported rows are kept as they are.
        holdout_share: share of the new rows that is held out as split "field", in [0, 1).
        weight: weight of a field row in training; an imported row has 1.

    Raises:
        UnknownDataset: there is no such base.
        NothingCollected: no labelled sample is new.
    """
    base = read_table(session, blobs, base_dataset)
    found = _gather(session, blobs, project, model, base)
    rows = found.added
    if not rows and not found.relabelled:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(found.skipped.items()))
        raise NothingCollected(
            f"no labelled sample of {model!r} is new to dataset {base_dataset[:12]}"
            + (f" (left out: {why})" if why else "")
        )
    parts = [_relabel(base, found.relabelled)]
    held_out = 0
    if rows:
        split = [
            "field" if share(row.row_sha, FIELD_SEED) < holdout_share else "train" for row in rows
        ]
        held_out = split.count("field")
        added = tabulate(
            concatenate([row.tensors for row in rows]),
            [row.label for row in rows],
            classes=classes_of(base),
            split=split,
            source=FIELD_SOURCE,
            prediction_ids=[row.prediction_id for row in rows],
            weight=weight,
        )
        parts.append(added.cast(base.schema))
    version = create(
        session,
        blobs,
        project,
        "labelled",
        pa.concat_tables(parts),
        parent=base_dataset,
        note=note or f"{len(rows)} labelled field samples of {model}",
        at=at,
    )
    log.info(
        "dataset.field_collected project=%s model=%s dataset=%s added=%d held_out=%d "
        "relabelled=%d skipped=%d",
        project, model, version.id, len(rows), held_out, len(found.relabelled),
        found.skipped.total(),
    )  # fmt: skip
    return version


def labelled_predictions(session: Session, project: str, model: str) -> list[tuple[Sample, Label]]:
    """Samples of a model that a person labelled, one a prediction, oldest first.

    Of several samples of one prediction the uniform one is taken.
    """
    labelled = select(Label.prediction_id).where(
        Label.project == project, Label.source.in_(labels.HUMAN_SOURCES)
    )
    samples: dict[tuple[str, str], Sample] = {}
    for sample in session.scalars(
        select(Sample)
        .where(Sample.model == model, Sample.prediction_id.in_(labelled))
        .order_by(Sample.taken_at, Sample.id)
    ):
        key = (sample.device, sample.prediction_id)
        held = samples.get(key)
        if held is None or _POLICY_ORDER[sample.policy] < _POLICY_ORDER[held.policy]:
            samples[key] = sample
    holding = labels.of_samples(session, project, list(samples.values()))
    return [
        (sample, holding[sample.id])
        for sample in samples.values()
        if sample.id in holding and holding[sample.id].source in labels.HUMAN_SOURCES
    ]


def _gather(session: Session, blobs: Blobs, project: str, model: str, base: pa.Table) -> _Found:
    classes = classes_of(base)
    wanted = {
        spec["name"]: (spec["datatype"], (1, *spec["shape"][1:]))
        for spec in tensor_specs(base.schema)
    }
    columns = (base.column(name).to_pylist() for name in ("row_sha", "source", "label"))
    known = {sha: (source, label) for sha, source, label in zip(*columns, strict=True)}
    found = _Found([], {}, Counter())
    for sample, label in labelled_predictions(session, project, model):
        if label.label not in classes:
            found.skipped["of an unknown class"] += 1
            continue
        try:
            header = SampleHeader.model_validate(sample.header)
            tensors = decode_sample(header, blobs.get(sample.blob))
        except (BadSample, BlobMissing, ValidationError) as error:
            log.warning("dataset.bad_sample sample=%s error=%s", sample.id, type(error).__name__)
            found.skipped["undecodable"] += 1
            continue
        if {name: (datatype_of(a.dtype), a.shape) for name, a in tensors.items()} != wanted:
            found.skipped["of another shape"] += 1
            continue
        row_sha = row_digests(tensors)[0]
        if row_sha not in known:
            index = classes.index(label.label)
            found.added.append(_Row(sample.prediction_id, tensors, index, row_sha))
            known[row_sha] = ("", label.label)
        elif known[row_sha][0] == FIELD_SOURCE and known[row_sha][1] != label.label:
            found.relabelled[row_sha] = label.label
    return found


def _relabel(base: pa.Table, relabelled: dict[str, str]) -> pa.Table:
    """The base with new labels for the rows with these digests."""
    if not relabelled:
        return base
    pairs = zip(base.column("row_sha").to_pylist(), base.column("label").to_pylist(), strict=True)
    values = [relabelled.get(sha, label) for sha, label in pairs]
    position = base.column_names.index("label")
    return base.set_column(position, base.schema.field("label"), pa.array(values, pa.string()))
