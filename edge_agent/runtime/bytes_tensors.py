"""BYTES tensors as binary: each element is its length, uint32 little-endian, and then its bytes.

Transports of both sides use it.  Inside, such a tensor is an object array of `bytes`.

Source: github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from edge_agent.runtime.session import Array

_U32: Final = struct.Struct("<I")


def join_elements(array: Array) -> bytes:
    """The binary form of `bytes` or text elements, row by row; text is UTF-8."""
    parts: list[bytes] = []
    for element in array.ravel():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += (_U32.pack(len(data)), data)
    return b"".join(parts)


def split_elements(data: memoryview, count: int) -> Array:
    """`count` elements as an object array of `bytes` with one axis.

    Raises:
        ValueError: `data` does not hold exactly that many; said in one line.
    """
    if count > len(data) // _U32.size:
        raise ValueError(f"{count} elements do not fit into {len(data)} bytes")
    array = np.empty(count, dtype=np.object_)
    offset = 0
    for index in range(count):
        if len(data) - offset < _U32.size:
            raise ValueError(f"cut short at element {index}")
        (length,) = _U32.unpack_from(data, offset)
        offset += _U32.size
        if length > len(data) - offset:
            raise ValueError(f"element {index} exceeds the data")
        array[index] = bytes(data[offset : offset + length])
        offset += length
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes too many")
    return array
