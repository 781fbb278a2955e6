"""Networks whose tensors numpy or a runtime has no own type for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from edge_agent.runtime import (
    ModelNotLoadable,
    RunFailed,
    Session,
    available,
    from_bfloat16,
    open_session,
    to_bfloat16,
)
from edge_agent.wire.manifest import ModelSpec, TensorSpec
from tests.runtime.networks import write_doubling, write_echo

RUNTIMES = sorted(available())


def spec(runtime: str, datatype: str) -> ModelSpec:
    x, y = (TensorSpec(name=name, datatype=datatype, shape=(-1, 3)) for name in "xy")
    return ModelSpec(runtime=runtime, file="model.onnx", inputs=(x,), outputs=(y,))


def open_doubling(directory: Path, runtime: str, datatype: str, kind: int) -> Session:
    return open_session(write_doubling(directory / "model.onnx", kind), spec(runtime, datatype))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bf16_tensors_are_float32_at_the_port(runtime: str, tmp_path: Path) -> None:
    session = open_doubling(tmp_path, runtime, "BF16", TensorProto.BFLOAT16)
    x = np.array([[1.0, -2.5, 1.5e38], [0.0, 1.0078125, -1e-30]], np.float32)
    y = session.run({"x": x})["y"]
    assert y.dtype == np.float32
    narrow = from_bfloat16(to_bfloat16(x))
    expected = from_bfloat16(to_bfloat16(narrow + narrow))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fp16_tensors_are_float16_at_the_port(runtime: str, tmp_path: Path) -> None:
    session = open_doubling(tmp_path, runtime, "FP16", TensorProto.FLOAT16)
    x = np.array([[1.0, -2.5, 0.1]], np.float16)
    y = session.run({"x": x})["y"]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, x * 2)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("datatype", "kind"), [("BF16", TensorProto.BFLOAT16), ("FP16", TensorProto.FLOAT16)]
)
def test_an_array_of_another_type_is_refused_not_cast(
    runtime: str, datatype: str, kind: int, tmp_path: Path
) -> None:
    session = open_doubling(tmp_path, runtime, datatype, kind)
    with pytest.raises(RunFailed):
        session.run({"x": np.ones((1, 3), np.float64)})


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "kind",
    [
        TensorProto.BOOL,
        TensorProto.UINT8,
        TensorProto.INT64,
        TensorProto.UINT32,
        TensorProto.DOUBLE,
    ],
)
def test_other_element_types_pass_unchanged(runtime: str, kind: int, tmp_path: Path) -> None:
    dtype = {
        TensorProto.BOOL: np.bool_,
        TensorProto.UINT8: np.uint8,
        TensorProto.INT64: np.int64,
        TensorProto.UINT32: np.uint32,
        TensorProto.DOUBLE: np.float64,
    }[kind]
    session = open_session(write_echo(tmp_path / "m.onnx", kind), spec(runtime, "FP32"))
    x: NDArray[np.generic] = np.array([[0, 1, 1]]).astype(dtype)
    y = session.run({"x": x})["y"]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_need_not_be_writable_or_row_major(runtime: str, tmp_path: Path) -> None:
    session = open_session(write_echo(tmp_path / "m.onnx", 1), spec(runtime, "FP32"))
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    np.testing.assert_array_equal(session.run({"x": x})["y"], x)
    fixed = np.frombuffer(np.ones((2, 3), np.float32).tobytes(), np.float32).reshape(2, 3)
    np.testing.assert_array_equal(session.run({"x": fixed})["y"], fixed)


def test_bytes_reach_a_network_of_strings_as_text_and_come_back_as_bytes(tmp_path: Path) -> None:
    session = open_session(
        write_echo(tmp_path / "m.onnx", TensorProto.STRING), spec("onnxruntime", "BYTES")
    )
    x = np.array([[b"sill", "é".encode(), b""]], dtype=np.object_)
    y = session.run({"x": x})["y"]
    assert y.tolist() == x.tolist()
    with pytest.raises(RunFailed, match="input 'x' holds bytes that are not UTF-8"):
        session.run({"x": np.array([[b"\xff", b"", b""]], dtype=np.object_)})


def test_openvino_refuses_strings(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = write_echo(tmp_path / "model.onnx", TensorProto.STRING)
    with pytest.raises(ModelNotLoadable, match="it has a tensor of strings"):
        open_session(path, spec("openvino", "BYTES"))


def test_every_bf16_value_survives_the_way_through_float32() -> None:
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    values = from_bfloat16(bits)
    back = to_bfloat16(values)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(back[number], bits[number])
    assert np.isnan(from_bfloat16(back[~number])).all()


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1 + 2**-9, 1.0),  # nearer to 1
        (1 + 2**-8, 1.0),  # a tie goes to the even one
        (1 + 3 * 2**-8, 1 + 2**-6),  # upwards too
        (1 + 2**-8 + 2**-20, 1 + 2**-7),  # above the tie
        (3.4e38, np.inf),
        (-3.4e38, -np.inf),
    ],
)
def test_float32_is_rounded_to_the_nearest_bf16(value: float, rounded: float) -> None:
    assert from_bfloat16(to_bfloat16(np.array([value], np.float32)))[0] == rounded


def test_only_float32_becomes_bf16() -> None:
    with pytest.raises(ValueError, match="a BF16 tensor is float32 here, not float64"):
        to_bfloat16(np.zeros(1))
