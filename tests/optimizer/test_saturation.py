"""Emulated pair sums, held against the instruction itself where a C compiler is there."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.runtime import Tensors, cpu_flags, open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.errors import RecipeFailed
from optimizer.passes import Artifact, PassContext, find
from optimizer.profiles import load_profile
from optimizer.saturating_layers import pair_sums
from optimizer.saturation import evaluate_saturating, relative_error, saturation_risk

GENERIC = "generic-x86-64"

KERNEL = """
#include <immintrin.h>
#include <stdint.h>
/* The dot product of n unsigned and n signed bytes, n a multiple of 32, pair by pair. */
int32_t dot(const uint8_t *a, const int8_t *b, int n) {
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < n; i += 32) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i *)(a + i)),
                                         _mm256_loadu_si256((const __m256i *)(b + i)));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  int32_t parts[8], total = 0;
  _mm256_storeu_si256((__m256i *)parts, sum);
  for (int i = 0; i < 8; i++) total += parts[i];
  return total;
}
"""


@pytest.fixture(scope="module")
def instruction(tmp_path_factory: pytest.TempPathFactory) -> Callable[[NDArray, NDArray], int]:
    """VPMADDUBSW itself."""
    compiler = shutil.which("gcc")
    if compiler is None or platform.machine() != "x86_64" or "avx2" not in cpu_flags():
        pytest.skip("needs gcc on an x86-64 CPU with AVX2")
    directory = tmp_path_factory.mktemp("kernel")
    (directory / "dot.c").write_text(KERNEL)
    library = directory / "dot.so"
    command = [compiler, "-O1", "-mavx2", "-shared", "-fPIC", "-o", library, directory / "dot.c"]
    subprocess.run(command, check=True)
    dot = ctypes.CDLL(str(library)).dot

    def run(row: NDArray, column: NDArray) -> int:
        padding = -len(row) % 32
        a = np.pad(row, (0, padding)).tobytes()
        b = np.pad(column, (0, padding)).tobytes()
        return int(dot(a, b, len(a)))

    return run


@pytest.mark.parametrize("length", [1, 2, 7, 32, 147])
@pytest.mark.parametrize("spread", ["wild", "usual"])
def test_pair_sums_are_those_of_the_instruction(instruction, length: int, spread: str) -> None:
    rng = np.random.default_rng(length)
    rows = rng.integers(0, 256, (5, length), dtype=np.uint8)
    columns = rng.integers(-128, 128, (length, 6)).astype(np.int8)
    if spread == "usual":
        columns = np.clip(rng.normal(0, 40, (length, 6)), -127, 127).astype(np.int8)
    exact, excess, count = pair_sums(rows, columns)
    wanted = [[instruction(row, column) for column in columns.T] for row in rows]
    np.testing.assert_array_equal(exact - excess, wanted)
    np.testing.assert_array_equal(exact, rows.astype(int) @ columns.astype(int))
    assert count >= np.count_nonzero(excess.any())


@dataclass(frozen=True)
class Made:
    artifact: Artifact
    path: Path
    plain: Tensors
    samples: Tensors

    @property
    def emulated(self) -> float:
        """Distance to fp32 of the answers on a CPU without VNNI."""
        return relative_error(evaluate_saturating(self.path, self.samples), self.plain)

    @property
    def exact(self) -> float:
        return relative_error(run(self.path, self.samples), self.plain)


def run(path: Path, tensors: Tensors) -> Tensors:
    spec = ModelSpec(runtime="onnxruntime", file=path.name, inputs=(), outputs=())
    session = open_session(path, spec)
    try:
        return session.run(tensors)
    finally:
        session.close()


def network(path: Path, nodes: list[onnx.NodeProto], weights: Tensors, shape: list[int]) -> Path:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return path


def loud(path: Path) -> Path:
    """Large inputs meet large weights, two by two: the worst that one layer can be asked for."""
    weights = np.tile(np.array([[1.0], [0.9], [-0.02], [0.01]], np.float32), (8, 4))
    weights += np.random.default_rng(1).normal(0, 0.01, weights.shape).astype(np.float32)
    return network(
        path,
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "loud")],
        {"w": weights, "b": np.ones(4, np.float32)},
        [32],
    )


def quiet(path: Path) -> Path:
    """Each pair has one small weight: nothing can saturate."""
    weights = np.tile(np.array([[0.9], [0.001]], np.float32), (16, 4))
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "quiet")]
    return network(path, nodes, {"w": weights, "b": np.ones(4, np.float32)}, [32])


def made(directory: Path, source: Path, profile: str = GENERIC, **config: object) -> Made:
    x = np.random.default_rng(0).uniform(0.2, 1, (64, 32)).astype(np.float32)
    directory.mkdir()
    context = PassContext(source, {"x": x}, directory, load_profile(profile))
    artifact = find("ort-int8", config).apply(context)
    return Made(artifact, directory / artifact.entry, run(source, {"x": x}), {"x": x})


def test_full_range_answers_wrongly_without_vnni_and_seven_bits_do_not(tmp_path: Path) -> None:
    source = loud(tmp_path / "loud.onnx")
    full = made(tmp_path / "full", source, reduce_range=False)
    reduced = made(tmp_path / "reduced", source, reduce_range=True)
    unsigned = made(tmp_path / "unsigned", source, weights="u8")
    assert full.exact < 0.02 < 0.1 < full.emulated
    assert reduced.emulated == pytest.approx(reduced.exact, rel=0.01)
    assert reduced.emulated < 0.02
    assert unsigned.emulated < 0.02
    report = saturation_risk(full.path, full.samples, load_profile(GENERIC))
    (layer,) = report.layers
    assert layer.operator == "Gemm"
    assert layer.name == "loud"
    assert 0.2 < layer.saturated / layer.pairs < 0.6
    assert report.moved > 0.1
    assert "saturate 16 bits; outputs move by" in report.note()


def test_the_recipe_leaves_the_full_range_where_it_would_saturate(tmp_path: Path) -> None:
    chosen = made(tmp_path / "chosen", loud(tmp_path / "loud.onnx"))
    assert chosen.emulated < 0.02
    (note,) = chosen.artifact.notes
    assert "is chosen" in note
    assert not saturation_risk(chosen.path, chosen.samples, load_profile(GENERIC)).saturated


def test_the_full_range_stays_where_nothing_saturates(tmp_path: Path) -> None:
    chosen = made(tmp_path / "chosen", quiet(tmp_path / "quiet.onnx"))
    stored = {item.name: item for item in onnx.load(chosen.path).graph.initializer}
    assert np.abs(numpy_helper.to_array(stored["w_quantized"]).astype(int)).max() == 127
    assert chosen.artifact.notes == (
        "no sum of two products saturates 16 bits on the calibration data",
    )


@pytest.mark.parametrize("profile", ["x86-64-vnni", "generic-arm64"])
def test_profiles_that_add_into_32_bits_have_no_risk(tmp_path: Path, profile: str) -> None:
    chosen = made(tmp_path / "chosen", loud(tmp_path / "loud.onnx"), profile)
    assert chosen.artifact.notes == ()
    report = saturation_risk(chosen.path, chosen.samples, load_profile(profile))
    assert (report.layers, report.saturated, report.moved) == ((), 0, 0.0)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 2, 1]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"group": 2},
        {"group": 4},
    ],
)
def test_what_does_not_saturate_is_answered_as_onnxruntime_answers(
    tmp_path: Path, attributes: dict[str, object]
) -> None:
    """Convolutions of every kind, in 7 bits; the emulation has its own arithmetic for them."""
    rng = np.random.default_rng(2)
    each = 4 // int(str(attributes.get("group", 1)))
    source = network(
        tmp_path / "conv.onnx",
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", **attributes),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
            helper.make_node("Flatten", ["g"], ["f"], "flatten"),
            helper.make_node("MatMul", ["f", "v"], ["y"], "last"),
        ],
        {
            "w": rng.normal(0, 1, (8, each, 3, 3)).astype(np.float32),
            "b": rng.normal(0, 1, 8).astype(np.float32),
            "v": rng.normal(0, 1, (8, 5)).astype(np.float32),
        },
        [4, 9, 9],
    )
    x = rng.normal(0, 1, (6, 4, 9, 9)).astype(np.float32)
    (tmp_path / "out").mkdir()
    context = PassContext(source, {"x": x}, tmp_path / "out", load_profile(GENERIC))
    find("ort-int8", {"reduce_range": True}).apply(context)
    path = tmp_path / "out" / "model.onnx"
    report = saturation_risk(path, {"x": x}, load_profile(GENERIC))
    assert [layer.operator for layer in report.layers] == ["Conv", "MatMul"]
    assert report.saturated == 0
    emulated = evaluate_saturating(path, {"x": x}, batch=4)
    np.testing.assert_allclose(emulated["y"], run(path, {"x": x})["y"], atol=0.06)


def test_a_file_that_is_no_network_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no")
    with pytest.raises(RecipeFailed, match=r"^broken\.onnx: not an ONNX file$"):
        evaluate_saturating(broken, {"x": np.zeros((1, 1), np.float32)})
