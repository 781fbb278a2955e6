"""Element types: Open Inference Protocol names and numpy dtypes.

Source: Open Inference Protocol v2, "Tensor Data Types".  BF16 has no numpy dtype and is not
supported as a pipeline's interface; BYTES is an object array of `bytes`.
"""

from __future__ import annotations

from typing import Any, Final, get_args

import numpy as np

from edge_agent.wire.manifest import Datatype

_NUMPY: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
_NAMES: Final[dict[np.dtype[Any], Datatype]] = {
    _NUMPY[name]: name for name in get_args(Datatype) if name in _NUMPY
}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The dtype of `datatype`.

    Raises:
        ValueError: no such type, or numpy has none (BF16).
    """
    try:
        return _NUMPY[datatype]
    except KeyError:
        raise ValueError(f"datatype {datatype!r} is not supported") from None


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """The protocol's name of `dtype`.

    Raises:
        ValueError: the protocol has no name for it.
    """
    name = _NAMES.get(dtype)
    if name is None:
        if dtype.kind in "SU":
            return "BYTES"
        raise ValueError(f"dtype {dtype} has no datatype name")
    return name
