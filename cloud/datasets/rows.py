"""Rows of a dataset as an Arrow table, and which split each belongs to.

Columns: one fixed-size binary column `tensor:NAME` per tensor (its field's metadata hold
`datatype` and `shape` without the batch axis), `label` (class name), `split`, `source`, `row_sha`,
`prediction_id` (empty for rows that are not of the field), `weight`.  The table's metadata hold the
class names.

Splits:
    train   fitted on
    eval    judges, and selects among the candidates of one build
    golden  judges; frozen for ever: a child version has exactly its parent's golden rows
    field   judges; held out of the labelled field samples

A row's split follows from the hash of its input, so the same input lands in the same split in
every version, wherever it comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloud.datasets.errors import BadRows
from cloud.datasets.tensors import canonical, datatype_of, row_digests, rows_of

SPLITS = ("train", "eval", "golden", "field")
JUDGING_SPLITS = frozenset({"eval", "golden", "field"})

TENSOR_PREFIX = "tensor:"
CLASSES_KEY = b"skerry.classes"


def share(row_sha: str, seed: int) -> float:
    """A number in [0, 1) that depends on the row's input and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{row_sha}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(
    row_shas: Sequence[str], *, golden_share: float, eval_share: float, seed: int
) -> list[str]:
    """Splits of imported rows: golden, then eval, the rest train; shares in [0, 1]."""
    if not 0 <= golden_share + eval_share < 1 or min(golden_share, eval_share) < 0:
        raise BadRows("golden_share and eval_share must leave rows to train on")
    splits = []
    for row_sha in row_shas:
        draw = share(row_sha, seed)
        if draw < golden_share:
            splits.append("golden")
        elif draw < golden_share + eval_share:
            splits.append("eval")
        else:
            splits.append("train")
    return splits


def tabulate(
    inputs: Mapping[str, NDArray[Any]],
    labels: NDArray[np.integer[Any]] | Sequence[int],
    *,
    classes: Sequence[str],
    split: Sequence[str] | None = None,
    golden_share: float = 0.15,
    eval_share: float = 0.15,
    seed: int = 0,
    source: str = "import",
    prediction_ids: Sequence[str] | None = None,
    weight: float = 1.0,
) -> pa.Table:
    """Rows as `create` takes them.

    Args:
        inputs: tensors by name, [n, …].
        labels: class indices into `classes`, [n].
        split: one of `SPLITS` a row; when left out, by `assign_splits` with the shares and seed.
        source: where the rows come from, e.g. "import", "field".

    Raises:
        BadRows: lengths, labels, splits or dtypes that do not fit together.
    """
    rows = rows_of(inputs)
    indices = np.asarray(labels)
    if indices.shape != (rows,) or not np.issubdtype(indices.dtype, np.integer):
        raise BadRows(f"{rows} rows need {rows} integer labels, not shape {indices.shape}")
    if rows and not (int(indices.min()) >= 0 and int(indices.max()) < len(classes)):
        raise BadRows(f"labels must be between 0 and {len(classes) - 1}, the last of the classes")
    row_shas = row_digests(inputs)
    if split is None:
        split = assign_splits(row_shas, golden_share=golden_share, eval_share=eval_share, seed=seed)
    if len(split) != rows or not set(split) <= set(SPLITS):
        raise BadRows(f"{rows} rows need {rows} splits out of {', '.join(SPLITS)}")
    ids = list(prediction_ids) if prediction_ids is not None else [""] * rows
    if len(ids) != rows:
        raise BadRows(f"{rows} rows need {rows} prediction ids")
    fields = []
    columns = []
    for name in sorted(inputs):
        array = canonical(inputs[name])
        width = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
        if width == 0:
            raise BadRows(f"tensor {name!r} has no elements")
        kind = pa.binary(width)
        metadata = {
            "datatype": datatype_of(array.dtype),
            "shape": json.dumps(list(array.shape[1:])),
        }
        fields.append(pa.field(f"{TENSOR_PREFIX}{name}", kind, nullable=False, metadata=metadata))
        columns.append(
            pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(array.tobytes())])
        )
    plain: list[tuple[str, pa.DataType, list[str] | list[float]]] = [
        ("label", pa.string(), [classes[int(index)] for index in indices]),
        ("split", pa.string(), list(split)),
        ("source", pa.string(), [source] * rows),
        ("row_sha", pa.string(), row_shas),
        ("prediction_id", pa.string(), ids),
        ("weight", pa.float64(), [weight] * rows),
    ]
    for name, kind, values in plain:
        fields.append(pa.field(name, kind, nullable=False))
        columns.append(pa.array(values, kind))
    schema = pa.schema(fields, metadata={CLASSES_KEY: json.dumps(list(classes)).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


def classes_of(table: pa.Table) -> tuple[str, ...]:
    """Class names of a table made by `tabulate`.

    Raises:
        BadRows: it carries none.
    """
    metadata = table.schema.metadata or {}
    if CLASSES_KEY not in metadata:
        raise BadRows("the table names no classes; make it with `tabulate`")
    return tuple(json.loads(metadata[CLASSES_KEY]))
