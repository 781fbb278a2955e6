from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard

from cloud.datasets import BadSample, decode_sample
from cloud.datasets.samples import MAX_TENSOR_BYTES
from edge_agent.wire.manifest import TensorSpec
from edge_agent.wire.samples import SampleHeader


def header(*tensors: TensorSpec) -> SampleHeader:
    return SampleHeader(
        sample_id="s",
        prediction_id="p",
        model="digits",
        version=1,
        policy="uniform",
        inclusion_prob=0.5,
        taken_at=1.0,
        tensors=tensors,
    )


IMAGE = TensorSpec(name="image", datatype="FP32", shape=(1, 2, 2))
AGE = TensorSpec(name="age", datatype="INT64", shape=(1,))


def test_tensors_come_back_in_header_order() -> None:
    image = np.arange(4, dtype="<f4").reshape(1, 2, 2)
    age = np.array([42], "<i8")
    blob = zstandard.compress(image.tobytes() + age.tobytes())
    tensors = decode_sample(header(IMAGE, AGE), blob)
    np.testing.assert_array_equal(tensors["image"], image)
    np.testing.assert_array_equal(tensors["age"], age)


@pytest.mark.parametrize(
    ("tensors", "blob", "message"),
    [
        ((IMAGE,), zstandard.compress(bytes(15)), "15 bytes where the header declares 16"),
        ((IMAGE,), zstandard.compress(bytes(17)), "more bytes where the header declares 16"),
        ((IMAGE,), b"raw bytes", "not a zstd frame"),
        ((IMAGE,), b"", "0 bytes where the header declares 16"),
        ((IMAGE.model_copy(update={"shape": (1, -1)}),), b"", "open shape"),
        ((IMAGE.model_copy(update={"datatype": "BYTES"}),), b"", "datatype BYTES"),
        ((IMAGE.model_copy(update={"shape": (1, MAX_TENSOR_BYTES)}),), b"", "exceed the limit"),
    ],
)
def test_bytes_that_do_not_add_up_are_refused(
    tensors: tuple[TensorSpec, ...], blob: bytes, message: str
) -> None:
    with pytest.raises(BadSample, match=message):
        decode_sample(header(*tensors), blob)


def test_a_small_blob_that_claims_to_be_huge_is_not_expanded() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200 * 1024 * 1024))
    assert len(bomb) < 50_000
    tracemalloc.start()
    try:
        with pytest.raises(BadSample, match="more bytes"):
            decode_sample(header(IMAGE), bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5 * 1024 * 1024
