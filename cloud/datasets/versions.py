"""Dataset versions: immutable Parquet shards and a canonical manifest.

A version's id is the SHA-256 of its manifest in canonical JSON (RFC 8785); the manifest names the
shards by digest, so the id covers every byte.  Creating the same rows twice gives the same version.

Rules, checked whenever a version is created:
    * no input of the train split is in a split that judges;
    * a child version has exactly its parent's golden rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rfc8785
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.datasets.errors import BadRows, GoldenChanged, Leak, UnknownDataset
from cloud.datasets.rows import JUDGING_SPLITS, TENSOR_PREFIX, classes_of
from cloud.datasets.tensors import Tensors, concatenate, dtype_of
from cloud.db.tables import DatasetVersion

log = logging.getLogger("skerry.datasets")

MAX_HELD_OUT_ROWS = 4096
"""Most rows that are handed out at once."""

SHARD_BYTES = 64 * 1024 * 1024
"""Uncompressed bytes a shard holds about."""

_COLUMNS = ("label", "split", "source", "row_sha", "prediction_id", "weight")


@dataclass(frozen=True, slots=True)
class Data:
    """Rows of a dataset version in memory.

    Attributes:
        inputs: tensors by name, [n, …]; may be read-only.
        labels: class indices into `classes`, int64 [n].
        split: "train", "eval", "golden" or "field", [n].
        source: where each row comes from, [n].
        row_sha: digest of each row's input, [n].
        prediction_id: id of a field row's prediction, else empty, [n].
        weight: weight of each row in training, float64 [n].
    """

    dataset: str
    classes: tuple[str, ...]
    inputs: Tensors
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    source: NDArray[np.str_]
    row_sha: NDArray[np.str_]
    prediction_id: NDArray[np.str_]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, *splits: str) -> Data:
        """The rows of these splits, in order."""
        return self.take(np.isin(self.split, splits))

    def take(self, rows: NDArray[Any]) -> Data:
        """The rows that a boolean mask or an index array picks."""
        return Data(
            dataset=self.dataset,
            classes=self.classes,
            inputs={name: array[rows] for name, array in self.inputs.items()},
            labels=self.labels[rows],
            split=self.split[rows],
            source=self.source[rows],
            row_sha=self.row_sha[rows],
            prediction_id=self.prediction_id[rows],
            weight=self.weight[rows],
        )


def create(
    session: Session,
    blobs: Blobs,
    project: str,
    stage: str,
    table: pa.Table,
    parent: str | None = None,
    note: str = "",
    *,
    at: float | None = None,
) -> DatasetVersion:
    """Store rows as a dataset version; returns the existing one when it is there already.

    Args:
        stage: "collected", "cleaned" or "labelled".
        table: rows as `tabulate` makes them.
        parent: id of the version that this one was made from.

    Raises:
        BadRows: the table lacks a column or holds no rows.
        UnknownDataset: there is no such parent.
        GoldenChanged, Leak: see the module's rules.
    """
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise BadRows(f"the table lacks {', '.join(missing)}; make it with `tabulate`")
    if table.num_rows == 0:
        raise BadRows("a dataset version needs rows")
    golden_sha = _check_splits(table)
    if parent is not None:
        _check_golden(get(session, parent), golden_sha)
    shards = [_put_shard(blobs, part) for part in _parts(table)]
    manifest = {
        "schema": 1,
        "project": project,
        "stage": stage,
        "parent": parent,
        "note": note,
        "classes": list(classes_of(table)),
        "tensors": tensor_specs(table.schema),
        "rows": table.num_rows,
        "splits": _counts(table, "split"),
        "sources": _counts(table, "source"),
        "labels": _counts(table, "label"),
        "golden_sha": golden_sha,
        "shards": shards,
    }
    dataset = hashlib.sha256(rfc8785.dumps(manifest)).hexdigest()
    existing = session.get(DatasetVersion, dataset)
    if existing is not None:
        return existing
    row = DatasetVersion(
        id=dataset,
        project=project,
        stage=stage,
        rows=table.num_rows,
        manifest=manifest,
        parent=parent,
        created_at=time.time() if at is None else at,
    )
    session.add(row)
    session.flush()
    log.info("dataset.created project=%s dataset=%s rows=%d", project, dataset, row.rows)
    return row


def get(session: Session, dataset: str) -> DatasetVersion:
    """One version's row.

    Raises:
        UnknownDataset: no version has this id.
    """
    row = session.get(DatasetVersion, dataset)
    if row is None:
        raise UnknownDataset(dataset)
    return row


def read_table(session: Session, blobs: Blobs, dataset: str) -> pa.Table:
    """All rows of a version as the table that it was created from.

    Raises:
        UnknownDataset: no version has this id.
    """
    shards = get(session, dataset).manifest["shards"]
    tables = [pq.read_table(io.BytesIO(blobs.get(shard["sha256"]))) for shard in shards]
    return pa.concat_tables(tables)


def held_out(session: Session, blobs: Blobs, dataset: str, limit: int) -> Tensors:
    """Inputs of up to `limit` rows that were never trained on, in their order; one shard in memory.

    Raises:
        UnknownDataset: no version has this id.
        BadRows: it holds none.
    """
    parts: list[Tensors] = []
    left = limit
    for shard in get(session, dataset).manifest["shards"]:
        table = pq.read_table(io.BytesIO(blobs.get(shard["sha256"])))
        judging = np.isin(table.column("split").to_pylist(), sorted(JUDGING_SPLITS))
        chosen = table.take(np.flatnonzero(judging)[:left]).combine_chunks()
        if chosen.num_rows:
            parts.append(_inputs(chosen))
            left -= chosen.num_rows
        if left <= 0:
            break
    if not parts:
        raise BadRows(f"dataset {dataset[:12]} holds no rows out of training")
    return concatenate(parts)


def read(session: Session, blobs: Blobs, dataset: str) -> Data:
    """All rows of a version as arrays.

    Raises:
        UnknownDataset: no version has this id.
    """
    table = read_table(session, blobs, dataset).combine_chunks()
    classes = classes_of(table)
    index = {name: position for position, name in enumerate(classes)}
    texts = {
        name: np.array(table.column(name).to_pylist(), dtype=np.str_)
        for name in ("split", "source", "row_sha", "prediction_id")
    }
    return Data(
        dataset=dataset,
        classes=classes,
        inputs=_inputs(table),
        labels=np.array([index[name] for name in table.column("label").to_pylist()], np.int64),
        split=texts["split"],
        source=texts["source"],
        row_sha=texts["row_sha"],
        prediction_id=texts["prediction_id"],
        weight=np.array(table.column("weight").to_pylist(), np.float64),
    )


def _inputs(table: pa.Table) -> Tensors:
    return {
        field.name.removeprefix(TENSOR_PREFIX): _array(table.column(field.name), field)
        for field in table.schema
        if field.name.startswith(TENSOR_PREFIX)
    }


def _array(column: pa.ChunkedArray, field: pa.Field) -> NDArray[Any]:
    dtype = dtype_of(field.metadata[b"datatype"].decode())
    shape = json.loads(field.metadata[b"shape"])
    parts = [
        np.frombuffer(
            chunk.buffers()[1],
            dtype,
            count=len(chunk) * field.type.byte_width // dtype.itemsize,
            offset=chunk.offset * field.type.byte_width,
        ).reshape(len(chunk), *shape)
        for chunk in column.chunks
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_splits(table: pa.Table) -> str:
    """Refuse leaks; returns the digest over the golden rows."""
    split = table.column("split").to_pylist()
    row_sha = table.column("row_sha").to_pylist()
    train: set[str] = set()
    judging: set[str] = set()
    golden: set[str] = set()
    for name, sha in zip(split, row_sha, strict=True):
        (judging if name in JUDGING_SPLITS else train).add(sha)
        if name == "golden":
            golden.add(sha)
    leaked = train & judging
    if leaked:
        raise Leak(f"{len(leaked)} inputs are both trained on and judged by")
    return hashlib.sha256("".join(sorted(golden)).encode()).hexdigest()


def _check_golden(parent: DatasetVersion, golden_sha: str) -> None:
    if parent.manifest["golden_sha"] != golden_sha:
        raise GoldenChanged(f"the golden rows are not those of the parent {parent.id}")


def _parts(table: pa.Table) -> list[pa.Table]:
    rows = max(1, int(SHARD_BYTES * table.num_rows / max(1, table.nbytes)))
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def _put_shard(blobs: Blobs, part: pa.Table) -> dict[str, Any]:
    sink = io.BytesIO()
    pq.write_table(part, sink, compression="zstd")
    data = sink.getvalue()
    return {"sha256": blobs.put(data), "rows": part.num_rows, "length": len(data)}


def tensor_specs(schema: pa.Schema) -> list[dict[str, Any]]:
    """Name, datatype and shape (batch axis first, -1) of a table's tensors, as JSON."""
    return [
        {
            "name": field.name.removeprefix(TENSOR_PREFIX),
            "datatype": field.metadata[b"datatype"].decode(),
            "shape": [-1, *json.loads(field.metadata[b"shape"])],
        }
        for field in schema
        if field.name.startswith(TENSOR_PREFIX)
    ]


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    return dict(Counter(table.column(column).to_pylist()))
