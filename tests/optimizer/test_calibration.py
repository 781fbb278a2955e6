from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import RecipeFailed
from optimizer.passes.calibration import BINS, Range, collect, cut, nearest
from optimizer.passes.context import Batches

METHODS = ("minmax", "percentile", "entropy")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [n, 64] to y [n, 4096], whose activations are much larger than its inputs."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 1, (64, 4096)).astype(np.float32),
        "b": np.zeros(4096, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Sqrt", ["r"], ["y"]),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4096])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return path


def batches(rows: int, batch: int = 32) -> Batches:
    x = np.random.default_rng(1).normal(0, 1, (rows, 64)).astype(np.float32)
    return Batches({"x": x}, np.arange(rows), batch)


def peak_bytes(path: Path, data: Batches, method: str) -> int:
    tracemalloc.start()
    try:
        collect(path, data, method)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_calibration_data(wide: Path, method: str) -> None:
    """Sixteen times the rows would be 48 MiB more of activations, were they kept."""
    few, many = batches(64), batches(1024)
    assert peak_bytes(wide, many, method) < peak_bytes(wide, few, method) + 1024 * 1024


@pytest.mark.parametrize("method", METHODS)
def test_ranges_do_not_depend_on_how_the_rows_are_grouped(wide: Path, method: str) -> None:
    one, other = collect(wide, batches(96), method), collect(wide, batches(96, 7), method)
    assert one.keys() == other.keys() == {"x", "h", "r", "y"}
    for name, each in one.items():
        # BLAS rounds by the number of rows
        assert (each.low, each.high) == pytest.approx((other[name].low, other[name].high), rel=1e-5)


def test_extremes_are_those_of_all_rows(wide: Path) -> None:
    data = batches(96)
    x = np.concatenate([part["x"] for part in data])
    found = collect(wide, data)
    assert found["x"] == Range(float(x.min()), float(x.max()))
    assert found["r"].low == 0
    assert found["r"].high == found["h"].high


def test_clipping_methods_leave_out_what_few_values_reach(wide: Path) -> None:
    data = batches(256)
    outer, inner, best = (collect(wide, data, method) for method in METHODS)
    assert outer["h"].low < inner["h"].low < 0 < inner["h"].high < outer["h"].high
    assert 0 < best["h"].high < outer["h"].high


def histogram(values: np.ndarray) -> tuple[np.ndarray, Range]:
    limit = float(np.abs(values).max())
    counts, _ = np.histogram(values, BINS, (-limit, limit))
    return counts, Range(float(values.min()), float(values.max()))


def test_a_percentile_is_that_of_the_values() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000)
    found = cut(*histogram(values), 99.0)
    wanted = np.percentile(values, [0.5, 99.5])
    assert (found.low, found.high) == pytest.approx(tuple(wanted), abs=0.01)


def test_everything_stays_at_a_hundred_percent() -> None:
    counts, outer = histogram(np.random.default_rng(0).normal(0, 1, 1000))
    assert cut(counts, outer, 100.0) == outer


def test_entropy_clips_an_outlier_and_leaves_a_flat_distribution_alone() -> None:
    rng = np.random.default_rng(0)
    bell = np.append(np.abs(rng.normal(0, 1, 500_000)), 40.0)
    assert 2 < nearest(*histogram(bell)).high < 12
    flat = rng.uniform(0, 1, 500_000)
    assert nearest(*histogram(flat)).high > 0.97


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_a_range(wide: Path, method: str) -> None:
    zeros = Batches({"x": np.zeros((8, 64), np.float32)}, np.arange(8), 4)
    found = collect(wide, zeros, method)
    assert found["y"] == Range(0.0, 0.0)


def test_what_is_not_a_number_is_named(wide: Path) -> None:
    x = np.ones((8, 64), np.float32)
    x[5] = np.nan
    with pytest.raises(RecipeFailed, match="tensor 'x' holds NaN"):
        collect(wide, Batches({"x": x}, np.arange(8), 4))


def test_what_is_infinite_as_behind_a_mask_has_no_range_and_the_rest_has(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["hidden"]), helper.make_node("Exp", ["hidden"], ["y"])],
        "masked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "masked.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    x = np.array([[0, 1, 2, 3]], np.float32)
    for method in METHODS:
        found = collect(path, Batches({"x": x}, np.arange(1), 1), method)
        assert set(found) == {"x", "y"}
