"""Element types of tensors, as stored: little-endian, by their Open Inference Protocol name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.datasets.errors import BadRows

Tensors = dict[str, NDArray[Any]]
"""Arrays by name, each with a leading batch axis."""

_DTYPES = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of a datatype.

    Raises:
        BadRows: a datatype without a fixed-size numpy form (BYTES, BF16).
    """
    try:
        return np.dtype(_DTYPES[datatype])
    except KeyError:
        raise BadRows(f"datatype {datatype} cannot be stored; use {', '.join(_DTYPES)}") from None


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The datatype's name of a numpy dtype.

    Raises:
        BadRows: there is none.
    """
    try:
        return _NAMES[dtype.newbyteorder("<")]
    except KeyError:
        raise BadRows(f"arrays of {dtype} cannot be stored; use {', '.join(_DTYPES)}") from None


def canonical(array: NDArray[Any]) -> NDArray[Any]:
    """`array` contiguous and little-endian, as its bytes are stored and hashed."""
    return np.ascontiguousarray(array, dtype=dtype_of(datatype_of(array.dtype)))


def row_digests(inputs: Mapping[str, NDArray[Any]]) -> list[str]:
    """SHA-256 of every row's input: names, datatypes, shapes and bytes, in the order of names.

    The label is no part of it: a row that is labelled anew is the same row.
    """
    names = sorted(inputs)
    arrays = [canonical(inputs[name]) for name in names]
    head = "".join(
        f"{name}:{datatype_of(array.dtype)}:{tuple(map(int, array.shape[1:]))};"
        for name, array in zip(names, arrays, strict=True)
    ).encode()
    digests = []
    for row in range(rows_of(inputs)):
        digest = hashlib.sha256(head)
        for array in arrays:
            digest.update(array[row].tobytes())
        digests.append(digest.hexdigest())
    return digests


def rows_of(inputs: Mapping[str, NDArray[Any]]) -> int:
    """Length of the batch axis.

    Raises:
        BadRows: no tensors, a scalar, or tensors of different lengths.
    """
    if not inputs or any(array.ndim == 0 for array in inputs.values()):
        raise BadRows("every tensor needs a leading batch axis, and there must be one")
    lengths = {name: array.shape[0] for name, array in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise BadRows(f"tensors differ in their number of rows: {lengths}")
    return int(next(iter(lengths.values())))


def concatenate(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Tensors:
    """Batches of the same tensors as one batch."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
