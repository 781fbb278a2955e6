"""Rows of a Parquet file.

A column is what its input needs: scalars; lists, nested as the item's axes or flat in row-major
order; tensors of a fixed shape; binary or text for BYTES; encoded images, as bytes or as Hugging
Face's struct of `bytes` and `path`, for the input that images fill.

pyarrow is imported at the first use: it comes with the extra `skerry-agent[parquet]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.pipeline.dataset_rows import (
    ID,
    MAX_BATCH_BYTES,
    BadRow,
    Batch,
    OnBad,
    grouped,
    named,
    numbered,
    require_inputs,
)
from edge_agent.pipeline.errors import (
    DatasetError,
    ImagesUnavailable,
    InputError,
    ParquetUnavailable,
)
from edge_agent.pipeline.image_file import decode_image
from edge_agent.runtime.datatypes import numpy_dtype
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import ImageSpec, TensorSpec

if TYPE_CHECKING:
    import pyarrow


class ParquetRows:
    """See the module."""

    def __init__(self, path: Path, inputs: Sequence[TensorSpec], image: ImageSpec | None) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ParquetUnavailable(
                "Parquet cannot be read here: install skerry-agent[parquet]"
            ) from error
        self._arrow, self._open = pyarrow, pyarrow.parquet.ParquetFile
        self._path, self._inputs, self._image = path, tuple(inputs), image
        try:
            with self._open(path) as file:
                self.rows: int = file.metadata.num_rows
                names = list(file.schema_arrow.names)
                stored_bytes = sum(
                    file.metadata.row_group(group).total_byte_size
                    for group in range(file.metadata.num_row_groups)
                )
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetError(f"{path.name}: cannot be read: {_line(error)}") from error
        require_inputs(names, inputs, path.name)
        for name in (*(spec.name for spec in inputs), ID):
            if names.count(name) > 1:
                raise DatasetError(
                    f"{path.name}: has the column {name!r} {names.count(name)} times"
                )
        self._columns = [spec.name for spec in inputs]
        self._has_ids = ID in names and ID not in self._columns
        if self._has_ids:
            self._columns.append(ID)
        self._row_bytes = max(1, stored_bytes // max(1, self.rows))

    def chunks(self, size: int, on_bad: OnBad) -> Iterator[Batch]:
        at_once = min(size, max(1, MAX_BATCH_BYTES // self._row_bytes))
        start = 0
        try:
            with self._open(self._path) as file:
                for record in file.iter_batches(batch_size=at_once, columns=self._columns):
                    stop = start + record.num_rows
                    ids = numbered(start, stop)
                    if self._has_ids:
                        ids = named(record.column(ID).to_pylist(), start)
                    yield from self._chunk(record, ids, size, on_bad)
                    start = stop
        except (OSError, UnicodeDecodeError, self._arrow.ArrowException) as error:
            raise DatasetError(f"{self._path.name}: is damaged: {_line(error)}") from error

    def _chunk(
        self, record: pyarrow.RecordBatch, ids: tuple[str, ...], size: int, on_bad: OnBad
    ) -> Iterator[Batch]:
        """The rows at once where every column is regular, else row by row."""
        tensors: Tensors = {}
        for spec in self._inputs:
            column = record.column(spec.name)
            array = None if self._holds_images(column, spec) else self._regular(column, spec)
            if array is None:
                yield from grouped(self._rows(record, ids, on_bad), size)
                return
            tensors[spec.name] = array
        yield Batch(ids, tensors)

    def _rows(
        self, record: pyarrow.RecordBatch, ids: tuple[str, ...], on_bad: OnBad
    ) -> Iterator[tuple[str, Tensors]]:
        for row, name in enumerate(ids):
            try:
                tensors: Tensors = {}
                for spec in self._inputs:
                    tensors |= self._cell(record.column(spec.name), row, spec)
                yield name, tensors
            except ImagesUnavailable as error:
                raise DatasetError(str(error)) from error
            except InputError as error:
                on_bad(BadRow(name, str(error)))

    def _cell(self, column: pyarrow.Array, row: int, spec: TensorSpec) -> Tensors:
        """One value as the tensor of one item.

        Raises:
            InputError: it is null, ragged or of another kind, or no image.
        """
        if self._holds_images(column, spec) and self._image is not None:
            value = column[row].as_py()
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise InputError(f"input {spec.name!r} holds no image")
            return decode_image(data, self._image, spec)
        array = self._regular(column.slice(row, 1), spec)
        if array is None:
            raise InputError(
                f"input {spec.name!r} is {column.type} with a null or of uneven lengths, "
                f"expected {spec.datatype} of shape {list(spec.shape[1:])}"
            )
        return {spec.name: array}

    def _holds_images(self, column: pyarrow.Array, spec: TensorSpec) -> bool:
        if self._image is None or spec.name != self._image.input:
            return False
        types = self._arrow.types
        return bool(
            types.is_binary(column.type)
            or types.is_large_binary(column.type)
            or (types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0)
        )

    def _regular(self, column: pyarrow.Array, spec: TensorSpec) -> Array | None:
        """A column as [n, …], or None where it has nulls, uneven lists or values of no array."""
        types = self._arrow.types
        shape = [len(column)]
        if isinstance(column.type, self._arrow.FixedShapeTensorType):
            if column.null_count:
                return None
            return np.asarray(column.to_numpy_ndarray())
        while _is_list(types, column.type):
            if column.null_count or not len(column):
                return None
            lengths = _lengths(types, column)
            if not len(lengths) or (lengths != lengths[0]).any():
                return None
            shape.append(int(lengths[0]))
            column = column.flatten()
        if column.null_count or types.is_nested(column.type):
            return None
        return _reshaped(column.to_numpy(zero_copy_only=False), shape, spec)


def _is_list(types: pyarrow.types, kind: pyarrow.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _lengths(types: pyarrow.types, column: pyarrow.Array) -> Array:
    """Of each list in `column`."""
    if types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size)
    return np.diff(np.asarray(column.offsets))


def _reshaped(values: Array, shape: list[int], spec: TensorSpec) -> Array | None:
    """`values` in `shape`; flat lists of a whole item in the item's shape."""
    item = spec.shape[1:]
    if len(shape) == 2 and len(item) != 1 and -1 not in item and math.prod(item) == shape[1]:
        shape = [shape[0], *item]
    if values.dtype.kind == "O" and numpy_dtype(spec.datatype).kind != "O":
        return None
    return values.reshape(shape)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
