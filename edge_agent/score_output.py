"""The file that scoring writes: one row an item, with its id, its answer and its error.

    id      of the input's row
    …       what the task route answers, one column a key; empty where the row has an error
    error   why there is no answer; empty where there is one

Rules: rows are written as they come, in bounded memory; a form is told by the file's name.  A key
of the answer that is "id" or "error" itself stands as "output_id" or "output_error".  An answer
that the form cannot hold, or of another type than the manifest promises, becomes an error of its
row.  Characters that are no text (lone surrogates) are written as escapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import numpy as np
import orjson
from pydantic import JsonValue

from edge_agent.pipeline.errors import ParquetUnavailable
from edge_agent.pipeline.task import answer
from edge_agent.runtime import numpy_dtype
from edge_agent.wire.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    import pyarrow

SUFFIXES: Final = (".parquet", ".jsonl")
ID, ERROR = "id", "error"

ROW_GROUP_ROWS: Final = 8192
ROW_GROUP_BYTES: Final = 16 << 20
"""Bounds of what waits for a row group to be written; bytes by the rows' text, roughly."""


class Output(Protocol):
    """Takes rows, in the order in which they shall stand.

    Attributes:
        unfit: rows whose answer could not be written; complete once it is closed.
    """

    unfit: int

    def answered(self, ids: Sequence[str], answers: Sequence[Mapping[str, JsonValue]]) -> None: ...

    def failed(self, row_id: str, error: str) -> None: ...

    def close(self) -> None:
        """Write what waits, also when the work has failed; the file itself stays open."""
        ...


def open_output(path: Path, file: BinaryIO, manifest: Manifest) -> Output:
    """Write to `file` in the form that `path` names.

    Raises:
        ParquetUnavailable: pyarrow is not installed.
    """
    return ParquetFile(file, manifest) if path.suffix == ".parquet" else JsonLines(file, manifest)


class JsonLines:
    """One object a line, every one with the same keys."""

    def __init__(self, file: BinaryIO, manifest: Manifest) -> None:
        self._file = file
        self._nothing: dict[str, JsonValue] = dict.fromkeys(_sample(manifest))
        self.unfit = 0

    def answered(self, ids: Sequence[str], answers: Sequence[Mapping[str, JsonValue]]) -> None:
        for row_id, each in zip(ids, answers, strict=True):
            try:
                line = orjson.dumps({ID: _text(row_id), **_columns(each), ERROR: None})
            except TypeError as error:  # text that is none, a number that is too large
                self.unfit += 1
                self.failed(row_id, f"the answer cannot be written: {error}")
            else:
                self._file.write(line + b"\n")

    def failed(self, row_id: str, error: str) -> None:
        row = {ID: _text(row_id), **self._nothing, ERROR: _text(error)}
        self._file.write(orjson.dumps(row) + b"\n")

    def close(self) -> None:
        self._file.flush()


class ParquetFile:
    """Typed columns, found from what the manifest says of the outputs."""

    def __init__(self, file: BinaryIO, manifest: Manifest) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ParquetUnavailable(
                "Parquet cannot be written here: install skerry-agent[parquet]"
            ) from error
        self._arrow = pyarrow
        specs = {spec.name: spec for spec in manifest.outputs}
        columns = [
            (name, _type(pyarrow, value, specs.get(name), manifest))
            for name, value in _sample(manifest).items()
        ]
        text = pyarrow.string()
        self._schema = pyarrow.schema([(ID, text), *columns, (ERROR, text)])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._waiting: list[Mapping[str, JsonValue]] = []
        self._waiting_bytes = 0
        self.unfit = 0

    def answered(self, ids: Sequence[str], answers: Sequence[Mapping[str, JsonValue]]) -> None:
        for row_id, each in zip(ids, answers, strict=True):
            self._waiting.append({ID: _text(row_id), **_columns(each)})
        if answers:
            self._waiting_bytes += len(answers) * len(repr(answers[0]))
        if len(self._waiting) >= ROW_GROUP_ROWS or self._waiting_bytes >= ROW_GROUP_BYTES:
            self._write()

    def failed(self, row_id: str, error: str) -> None:
        self._waiting.append({ID: _text(row_id), ERROR: _text(error)})
        if len(self._waiting) >= ROW_GROUP_ROWS:
            self._write()

    def close(self) -> None:
        try:
            self._write()
            self._writer.close()
        finally:
            self._writer.is_open = False  # else it tries again when it is forgotten

    def _write(self) -> None:
        if self._waiting:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            try:
                table = self._table(waiting)
            except (self._arrow.ArrowException, ValueError, TypeError, OverflowError):
                table = self._table([self._fitting(row) for row in waiting])
            self._writer.write_table(table)

    def _table(self, rows: list[Mapping[str, JsonValue]]) -> pyarrow.Table:
        return self._arrow.Table.from_pylist(rows, schema=self._schema)

    def _fitting(self, row: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        """`row`, or in its place one that says why it cannot be written."""
        try:
            self._table([row])
        except (self._arrow.ArrowException, ValueError, TypeError, OverflowError) as error:
            self.unfit += 1
            line = " ".join(str(error).split())
            return {ID: row[ID], ERROR: _text(f"the answer cannot be written: {line}")}
        return row


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _columns(answer: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if ID not in answer and ERROR not in answer:
        return answer
    return {f"output_{key}" if key in (ID, ERROR) else key: value for key, value in answer.items()}


def _sample(manifest: Manifest) -> Mapping[str, JsonValue]:
    """An answer as this manifest's look: its keys, and a value of each one's type."""
    outputs = {spec.name: _any(spec) for spec in manifest.outputs}
    [sample] = answer(outputs, manifest)
    return _columns(sample)


def _any(spec: TensorSpec) -> np.ndarray[Any, Any]:
    shape = (1, *(1 if size < 0 else size for size in spec.shape[1:]))
    dtype = numpy_dtype(spec.datatype)
    if dtype.kind == "O":
        return np.full(shape, b"", dtype=dtype)
    # of no boxes nothing could be learnt
    return np.full(shape, 1 if spec.name == "count" else 0, dtype=dtype)


def _type(
    arrow: Any, value: JsonValue, spec: TensorSpec | None, manifest: Manifest
) -> pyarrow.DataType:
    """Arrow's type for values like this one, of an output or made from several."""
    if isinstance(value, dict):
        return arrow.struct(
            [(name, _type(arrow, part, None, manifest)) for name, part in value.items()]
        )
    if isinstance(value, list):
        inner = _type(arrow, value[0], spec, manifest) if value else arrow.null()
        return arrow.list_(inner)
    if isinstance(value, bool):
        return arrow.bool_()
    if isinstance(value, int):
        return arrow.uint64() if spec is not None and spec.datatype == "UINT64" else arrow.int64()
    if isinstance(value, float):
        wide = "FP64" in ({spec.datatype} if spec else {each.datatype for each in manifest.outputs})
        return arrow.float64() if wide else arrow.float32()
    return arrow.string()
