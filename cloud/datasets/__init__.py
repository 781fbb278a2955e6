"""Datasets: what models are trained on and judged by, as immutable versions.

Owns `dataset_versions` and the shards that their manifests name.  A version is made by an import
(`tabulate`, `create`) or of field samples and their labels (`collect_field`).  It decides which row
is in which split, and keeps what judges apart from what trains; it neither trains nor judges.
"""

from __future__ import annotations

from cloud.datasets.errors import (
    BadRows,
    BadSample,
    DatasetError,
    GoldenChanged,
    Leak,
    NothingCollected,
    UnknownDataset,
)
from cloud.datasets.field import collect_field, labelled_predictions
from cloud.datasets.rows import SPLITS, assign_splits, tabulate
from cloud.datasets.samples import decode_sample
from cloud.datasets.tensors import Tensors, row_digests
from cloud.datasets.versions import MAX_HELD_OUT_ROWS, Data, create, get, held_out, read

__all__ = [
    "MAX_HELD_OUT_ROWS",
    "SPLITS",
    "BadRows",
    "BadSample",
    "Data",
    "DatasetError",
    "GoldenChanged",
    "Leak",
    "NothingCollected",
    "Tensors",
    "UnknownDataset",
    "assign_splits",
    "collect_field",
    "create",
    "decode_sample",
    "get",
    "held_out",
    "labelled_predictions",
    "read",
    "row_digests",
    "tabulate",
]
