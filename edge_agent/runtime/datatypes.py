"""Element types: Open Inference Protocol names and numpy dtypes.

Source: Open Inference Protocol v2, "Tensor Data Types".  numpy has no BF16: such a tensor is a
float32 array in here, so that BF16 alone does not survive the way there and back.  BYTES is an
object array of `bytes`.
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
_BF16: Final = "BF16"
_NAMES: Final[dict[np.dtype[Any], Datatype]] = {
    _NUMPY[name]: name for name in get_args(Datatype) if name in _NUMPY
}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The dtype of `datatype`; float32 for BF16, see `runtime.bfloat16`.

    It is an array's type, not the size of an element on the wire, which is two bytes for BF16.

    Raises:
        ValueError: no such type.
    """
    try:
        return _NUMPY["FP32" if datatype == _BF16 else datatype]
    except KeyError:
        raise ValueError(f"datatype {datatype!r} is not supported") from None


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """The protocol's name of `dtype`; never BF16.

    Raises:
        ValueError: the protocol has no name for it.
    """
    name = _NAMES.get(dtype)
    if name is None:
        if dtype.kind in "SU":
            return "BYTES"
        raise ValueError(f"dtype {dtype} has no datatype name")
    return name
