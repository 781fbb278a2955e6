"""From a stored field sample back to tensors.

A sample's blob is the payload that the device sent: the tensors' little-endian bytes in header
order, compressed as one zstd frame.  Devices are not trusted: the header says how many bytes come
out, and never more are decompressed, whatever the frame claims.
"""

from __future__ import annotations

import io
import math

import numpy as np
import zstandard

from cloud.datasets.errors import BadRows, BadSample
from cloud.datasets.tensors import Tensors, dtype_of
from edge_agent.wire.samples import SampleHeader

MAX_TENSOR_BYTES = 16 * 1024 * 1024
"""Bound of one sample's tensors after decompression."""


def decode_sample(header: SampleHeader, blob: bytes) -> Tensors:
    """The tensors of one sample, each with its leading batch axis; read-only views.

    Raises:
        BadSample: unknown datatype, an open shape, or bytes that do not add up.
    """
    try:
        dtypes = [dtype_of(spec.datatype) for spec in header.tensors]
    except BadRows as error:
        raise BadSample(str(error)) from error
    if any(size < 0 for spec in header.tensors for size in spec.shape):
        raise BadSample("a tensor of a sample has an open shape")
    sizes = [
        math.prod(spec.shape) * dtype.itemsize
        for spec, dtype in zip(header.tensors, dtypes, strict=True)
    ]
    expected = sum(sizes)
    if expected > MAX_TENSOR_BYTES:
        raise BadSample(f"{expected} bytes of tensors exceed the limit of {MAX_TENSOR_BYTES}")
    data = _decompress(blob, expected)
    tensors: Tensors = {}
    start = 0
    for spec, dtype, size in zip(header.tensors, dtypes, sizes, strict=True):
        part = np.frombuffer(data, dtype, count=size // dtype.itemsize, offset=start)
        tensors[spec.name] = part.reshape(spec.shape)
        start += size
    return tensors


def _decompress(blob: bytes, expected: int) -> bytes:
    parts: list[bytes] = []
    length = 0
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_TENSOR_BYTES)
        with decompressor.stream_reader(io.BytesIO(blob)) as reader:
            while length <= expected:
                part = reader.read(expected + 1 - length)
                if not part:
                    break
                parts.append(part)
                length += len(part)
    except zstandard.ZstdError as error:
        raise BadSample(f"not a zstd frame: {error}") from error
    if length != expected:
        more = "more" if length > expected else f"{length}"
        raise BadSample(f"{more} bytes where the header declares {expected}")
    return b"".join(parts)
