"""Sources of rows that need nothing but numpy: images in a directory, `.npz`, `.jsonl`."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np

from edge_agent.pipeline.dataset_rows import (
    ID,
    MAX_BATCH_BYTES,
    BadRow,
    Batch,
    OnBad,
    convertible,
    grouped,
    id_of,
    named,
    numbered,
    printable,
    require_inputs,
    same_length,
)
from edge_agent.pipeline.errors import DatasetError, ImagesUnavailable, InputError
from edge_agent.pipeline.image_file import SUFFIXES, decode_image
from edge_agent.pipeline.task import tensors_from_values
from edge_agent.runtime.npz import ARCHIVE_ERRORS, one_line
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import ImageSpec, TensorSpec

MAX_ROW_BYTES: Final = 64 << 20
"""An image file or a line above this is a bad row, and is not read into memory."""

_GOLDEN_PREFIX: Final = "input:"


class ImageDirectory:
    """Every image below a directory, ordered by name; other files are passed over."""

    def __init__(self, path: Path, inputs: Sequence[TensorSpec], image: ImageSpec | None) -> None:
        if image is None or [spec.name for spec in inputs] != [image.input]:
            raise DatasetError(
                f"{path.name}: a directory of images, and the model takes no image alone"
            )
        self._image, self._spec = image, inputs[0]
        self._path = path
        self.rows = sum(1 for _ in self._files(path))
        if not self.rows:
            raise DatasetError(f"{path.name}: holds no images ({' '.join(sorted(SUFFIXES))})")

    def chunks(self, size: int, on_bad: OnBad) -> Iterator[Batch]:
        return grouped(self._items(on_bad), size)

    def _items(self, on_bad: OnBad) -> Iterator[tuple[str, Tensors]]:
        for file in self._files(self._path):
            name = printable(file.relative_to(self._path).as_posix())
            try:
                if not file.is_file():  # a pipe would keep us waiting
                    raise InputError("not a file")
                if file.stat().st_size > MAX_ROW_BYTES:
                    raise InputError(f"the file is larger than {MAX_ROW_BYTES} bytes")
                yield name, decode_image(file.read_bytes(), self._image, self._spec)
            except ImagesUnavailable as error:
                raise DatasetError(str(error)) from error
            except InputError as error:
                on_bad(BadRow(name, str(error)))
            except OSError as error:
                on_bad(BadRow(name, error.strerror or type(error).__name__))

    def _files(self, directory: Path) -> Iterator[Path]:
        """Depth first, one directory's names in memory at a time."""
        try:
            with os.scandir(directory) as entries:
                found = sorted(
                    (entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in entries
                    if not entry.name.startswith(".")
                )
        except OSError as error:
            raise DatasetError(f"{directory.name}: {error.strerror}") from error
        for name, is_directory in found:
            if is_directory:
                yield from self._files(directory / name)
            elif Path(name).suffix.lower() in SUFFIXES:
                yield directory / name


class NpzFile:
    """Arrays of an `.npz`, read a batch at a time whether it is compressed or not."""

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        *,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self._path = path
        self._max_batch_bytes = max_batch_bytes
        with ExitStack() as stack:
            archive = self._open(stack)
            plain = {name.removesuffix(".npy") for name in archive.namelist()}
            self._members = {
                spec.name: spec.name if spec.name in plain else _GOLDEN_PREFIX + spec.name
                for spec in inputs
            }
            found = {name for name, member in self._members.items() if member in plain}
            require_inputs([*found, *(plain - found)], inputs, path.name)
            if ID in plain and ID not in self._members:
                self._members[ID] = ID
            arrays = self._arrays(stack, archive)
            for spec in inputs:
                _require_kind(arrays[spec.name], spec, path.name)
            self.rows: int = same_length(
                {name: array.shape[0] for name, array in arrays.items()}, path.name
            )
            self._row_bytes = sum(array.row_bytes for array in arrays.values())
        self._has_ids = ID in self._members and all(spec.name != ID for spec in inputs)

    def chunks(self, size: int, on_bad: OnBad) -> Iterator[Batch]:
        size = min(size, max(1, self._max_batch_bytes // self._row_bytes))
        with ExitStack() as stack:
            arrays = self._arrays(stack, self._open(stack))
            for start in range(0, self.rows, size):
                stop = min(start + size, self.rows)
                try:
                    tensors = {name: array.take(stop - start) for name, array in arrays.items()}
                    ids = numbered(start, stop)
                    if self._has_ids:
                        ids = named(tensors.pop(ID).ravel().tolist(), start)
                except ARCHIVE_ERRORS as error:
                    raise DatasetError(
                        f"{self._path.name}: is damaged: {one_line(error)}"
                    ) from error
                yield Batch(ids, tensors)

    def _open(self, stack: ExitStack) -> zipfile.ZipFile:
        try:
            # a file that zipfile opened itself stays open when the archive is damaged
            return stack.enter_context(zipfile.ZipFile(stack.enter_context(self._path.open("rb"))))
        except ARCHIVE_ERRORS as error:
            raise DatasetError(f"{self._path.name}: cannot be read: {one_line(error)}") from error

    def _arrays(self, stack: ExitStack, archive: zipfile.ZipFile) -> dict[str, _Stream]:
        arrays = {}
        for name, member in self._members.items():
            try:
                file = stack.enter_context(archive.open(f"{member}.npy"))
                arrays[name] = _Stream(file)
            except ARCHIVE_ERRORS as error:
                raise DatasetError(f"{self._path.name}: {member!r}: {one_line(error)}") from error
        return arrays


class _Stream:
    """An `.npy` of which the rows are taken one after another.

    Source: the format is described in `numpy.lib.format`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"format {version} is not supported")
        if dtype.hasobject:
            raise ValueError("holds pickled objects")
        if fortran and len(shape) > 1:
            raise ValueError("lies in columns; save np.ascontiguousarray of it")
        if not shape:
            raise ValueError("is a single value, not rows")
        if min(shape) < 0:
            raise ValueError(f"has the negative shape {list(shape)}")
        self.shape, self.dtype = tuple(shape), dtype
        self.row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        if not self.row_bytes:
            raise ValueError("has empty rows")
        self._file = file

    def take(self, count: int) -> Array:
        """The next `count` rows."""
        wanted = count * self.row_bytes
        data = bytearray()
        while len(data) < wanted:
            part = self._file.read(wanted - len(data))
            if not part:
                raise EOFError("it ends in the middle of a row")
            data += part
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


class JsonLines:
    """One JSON object per line."""

    rows = None

    def __init__(self, path: Path, inputs: Sequence[TensorSpec]) -> None:
        self._path = path
        self._inputs = tuple(inputs)
        self._names = {spec.name for spec in inputs}
        self._decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def chunks(self, size: int, on_bad: OnBad) -> Iterator[Batch]:
        return grouped(self._items(on_bad), size)

    def _items(self, on_bad: OnBad) -> Iterator[tuple[str, Tensors]]:
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(_lines(file)):
                    if line is None:
                        on_bad(
                            BadRow(str(number), f"the line is longer than {MAX_ROW_BYTES} bytes")
                        )
                    elif line.strip():
                        yield from self._row(line, str(number), on_bad)
        except OSError as error:
            raise DatasetError(f"{self._path.name}: {error.strerror}") from error

    def _row(self, line: bytes, name: str, on_bad: OnBad) -> Iterator[tuple[str, Tensors]]:
        try:
            values = self._decoder.decode(line)
            if ID in values and ID not in self._names:
                name = id_of(msgspec.json.decode(values[ID]))
            if "inputs" in values and "inputs" not in self._names:
                values = self._decoder.decode(values["inputs"])
            values = {key: value for key, value in values.items() if key in self._names}
            tensors = tensors_from_values(values, self._inputs)
            items = len(next(iter(tensors.values())))
            if items != 1:
                raise InputError(f"the line holds {items} items; one per line is expected")
            yield name, tensors
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            on_bad(BadRow(name, f"not understood: {str(error).splitlines()[0][:200]}"))
        except InputError as error:
            on_bad(BadRow(name, str(error)))


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines; None for one that is too long."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) <= MAX_ROW_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_ROW_BYTES)
        yield None


def _require_kind(array: _Stream, spec: TensorSpec, where: str) -> None:
    """Refuse a file that no row of which could fit, before a row is read."""
    wanted, actual = spec.shape[1:], array.shape[1:]
    if len(wanted) != len(actual) or any(
        length not in (-1, other) for length, other in zip(wanted, actual, strict=True)
    ):
        raise DatasetError(
            f"{where}: rows of {spec.name!r} have shape {list(actual)}, expected {list(wanted)}"
        )
    if not convertible(array.dtype, spec):
        raise DatasetError(f"{where}: {spec.name!r} is {array.dtype}, expected {spec.datatype}")
