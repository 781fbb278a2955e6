"""Data sets: many requests from files, in batches, for whoever is in no hurry.

    dataset = open_dataset(path, manifest.inputs, image=manifest.image, on_bad=report)
    for batch in dataset.batches(32):
        outputs = pipeline.run(batch.tensors).tensors        # row i belongs to batch.ids[i]

    a directory    of images, below it too; a row's id is its path in there
    NAME.npz       arrays named as the inputs (or `input:NAME`), `id` if there is one
    NAME.parquet   columns named as the inputs, `id` if there is one; needs `skerry-agent[parquet]`
    NAME.jsonl     an object of inputs per line, or {"id": …, "inputs": {…}}

Rules:
    * Files are streamed: what is in memory is a batch, never more than about 64 MiB of rows.
    * Rows keep their order.  Without an id of its own a row is named by its number, from 0.
    * What a batch holds is valid for the interface.  Numbers become its datatype where they fit;
      nothing is rounded to an integer or wrapped.
    * A row that cannot be used is reported and left out; a file that cannot is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edge_agent.pipeline.dataset_files import ImageDirectory, JsonLines, NpzFile
from edge_agent.pipeline.dataset_parquet import ParquetRows
from edge_agent.pipeline.dataset_rows import (
    BadRow,
    Batch,
    OnBad,
    Source,
    fitted,
    joined,
    numbered,
    require_inputs,
    same_length,
)
from edge_agent.pipeline.errors import DatasetError, InputError
from edge_agent.pipeline.interface import validate
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import ImageSpec, TensorSpec

__all__ = ["BadRow", "Batch", "Dataset", "OnBad", "of_arrays", "open_dataset"]

log = logging.getLogger("skerry.pipeline")


class Dataset:
    """See the module.  Made by `open_dataset` or `of_arrays`."""

    def __init__(
        self, source: Source, inputs: Sequence[TensorSpec], on_bad: OnBad | None = None
    ) -> None:
        """Read `source` as the inputs of one interface.

        Args:
            on_bad: told of each row that is left out; without it they are logged.
        """
        self._source = source
        self._inputs = tuple(inputs)
        self._on_bad = _log_bad if on_bad is None else on_bad
        fixed = [spec.shape[0] for spec in inputs if spec.shape and spec.shape[0] > 0]
        self._most = min(fixed, default=None)

    @property
    def rows(self) -> int | None:
        """How many rows there are, bad ones too; None where counting means reading."""
        return self._source.rows

    def batches(self, size: int) -> Iterator[Batch]:
        """All usable rows, up to `size` at a time; fewer where their shapes or bytes ask for it.

        A network whose batch is fixed gets exactly that many, and a rest that is too short is
        reported.

        Raises:
            DatasetError: the files turn out to be damaged.
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"a batch has at least one row, not {size}")
        for chunk in self._source.chunks(self._most or size, self._on_bad):
            yield from self._usable(chunk)

    def _usable(self, chunk: Batch) -> Iterator[Batch]:
        """`chunk` as the interface wants it, without the rows that do not fit."""
        try:
            tensors = {spec.name: fitted(chunk.tensors[spec.name], spec) for spec in self._inputs}
            validate(tensors, self._inputs)
        except InputError as error:
            if len(chunk) == 1:
                self._on_bad(BadRow(chunk.ids[0], str(error)))
                return
        else:
            yield Batch(chunk.ids, tensors)
            return
        good = [batch for row in chunk.apart() for batch in self._usable(row)]
        if good:
            yield joined(good)


def open_dataset(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    image: ImageSpec | None = None,
    on_bad: OnBad | None = None,
) -> Dataset:
    """The data set in `path`, for a model with `inputs`.

    Args:
        image: how the model takes images; needed for a directory.
        on_bad: told of each row that is left out; without it they are logged.

    Raises:
        DatasetError: it is missing, of no known form, damaged, or lacks an input.
        ParquetUnavailable: it is Parquet and pyarrow is not installed.
    """
    items = [spec.model_copy(update={"shape": (-1, *spec.shape[1:])}) for spec in inputs]
    source: Source
    if path.is_dir():
        source = ImageDirectory(path, items, image)
    elif not path.is_file():
        raise DatasetError(f"{path}: no such file or directory")
    elif path.suffix == ".npz":
        source = NpzFile(path, items)
    elif path.suffix == ".jsonl":
        source = JsonLines(path, items)
    elif path.suffix == ".parquet":
        source = ParquetRows(path, items, image)
    else:
        raise DatasetError(
            f"{path.name}: not a data set; expected a directory of images, .npz, .parquet or .jsonl"
        )
    return Dataset(source, inputs, on_bad)


def of_arrays(
    tensors: Mapping[str, Array],
    inputs: Sequence[TensorSpec],
    *,
    ids: Sequence[str] | None = None,
    on_bad: OnBad | None = None,
) -> Dataset:
    """Rows that are in memory already.

    Raises:
        DatasetError: an input is missing, or the arrays differ in their number of rows.
    """
    require_inputs(tensors, inputs, "the arrays")
    chosen = {spec.name: tensors[spec.name] for spec in inputs}
    count = same_length({name: len(array) for name, array in chosen.items()}, "the arrays")
    if ids is not None and len(ids) != count:
        raise DatasetError(f"there are {len(ids)} ids for {count} rows")
    return Dataset(_Arrays(chosen, count, ids), inputs, on_bad)


class _Arrays:
    def __init__(self, tensors: Tensors, rows: int, ids: Sequence[str] | None) -> None:
        self.rows = rows
        self._tensors = tensors
        self._ids = ids

    def chunks(self, size: int, on_bad: OnBad) -> Iterator[Batch]:
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            ids = numbered(start, stop) if self._ids is None else tuple(self._ids[start:stop])
            yield Batch(ids, {name: array[start:stop] for name, array in self._tensors.items()})


def _log_bad(row: BadRow) -> None:
    log.warning("dataset.row_left_out id=%s reason=%s", row.id, row.reason)
