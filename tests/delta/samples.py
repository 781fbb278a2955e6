"""Bundles of one network in two versions, as a publisher makes them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray

SHAPES = ((64, 64, 3, 3), (256, 128), (40,))
SCALE = 0.0015


class Bytes:
    """A base in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.length = len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= self.length - length
        return self.data[offset : offset + length]


def weights(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(0, 0.05, shape).astype(np.float32) for shape in shapes]


def trained_on(before: Sequence[Array], seed: int, step: float = 0.0004) -> list[Array]:
    """Every weight moved a little."""
    random = np.random.default_rng(seed)
    return [each + random.normal(0, step, each.shape).astype(each.dtype) for each in before]


def int8(before: Sequence[Array]) -> list[Array]:
    """Quantised with a scale that stays."""
    return [np.clip(np.round(each / SCALE), -127, 127).astype(np.int8) for each in before]


def onnx_file(tensors: Sequence[Array], names: Sequence[str] = ()) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    names = names or [f"w{index}" for index in range(len(tensors))]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "network",
        [value],
        [result],
        [numpy_helper.from_array(each, name) for each, name in zip(tensors, names, strict=True)],
    )
    return bytes(helper.make_model(graph, producer_name="tests").SerializeToString())


def bundle(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def versions(quantised: bool = True, step: float = 0.0004) -> tuple[bytes, bytes]:
    """Two bundles, the second one trained further."""
    old = weights(1)
    new = trained_on(old, 2, step)
    if quantised:
        old, new = int8(old), int8(new)
    return (
        bundle({"manifest.json": b'{"version": 1}' * 50, "model.onnx": onnx_file(old)}),
        bundle({"manifest.json": b'{"version": 2}' * 50, "model.onnx": onnx_file(new)}),
    )
