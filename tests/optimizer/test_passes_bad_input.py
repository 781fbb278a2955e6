"""What cannot be made is one clear line, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edge_agent.runtime import Tensors, cpu_flags
from optimizer.errors import DiskFull, OptimizerError, RecipeFailed
from optimizer.passes import PassContext, find
from optimizer.profiles import load_profile
from tests.optimizer.small_networks import NETWORKS, WIDTH, perceptron, rows, write

QUANTISERS = ("ort-int8", "ort-int8-entropy", "openvino-int8", "tensorrt-int8")


def refusal(
    directory: Path,
    recipe: str,
    source: Path,
    calibration: Tensors,
    kind: type[OptimizerError] = RecipeFailed,
    profile: str = "x86-64-amx",
) -> str:
    out = directory / "out"
    out.mkdir()
    context = PassContext(source, calibration, out, load_profile(profile))
    with pytest.raises(kind) as caught:
        find(recipe).apply(context)
    assert list(out.iterdir()) == []
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("recipe", ["openvino-fp32", "openvino-int8"])
def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path, recipe: str) -> None:
    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Relu", ["d"], ["y"])]
    source = write(tmp_path / "det.onnx", nodes, {}, (4, 4))
    x = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    line = refusal(tmp_path, recipe, source, {"x": x})
    assert line.startswith("OpenVINO cannot read the network: ")
    assert "Det" in line


@pytest.mark.parametrize("recipe", ["fp32", "ort-int8"])
def test_an_operator_that_onnxruntime_lacks_is_named(tmp_path: Path, recipe: str) -> None:
    nodes = [helper.make_node("Wobble", ["x"], ["y"], domain="nowhere")]
    source = write(tmp_path / "wobble.onnx", nodes, {}, (WIDTH,), ("nowhere",))
    line = refusal(tmp_path, recipe, source, rows("perceptron"))
    assert "Wobble" in line


def broken_weight(path: Path, value: float) -> Path:
    model = onnx.load(perceptron(path))
    for item in model.graph.initializer:
        if item.name == "v":
            array = onnx.numpy_helper.to_array(item).copy()
            array[0, 0] = value
            item.CopyFrom(onnx.numpy_helper.from_array(array, "v"))
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("recipe", ["fp32", "openvino-fp32", "ort-int8-weights"])
def test_a_network_that_answers_nan_is_refused(tmp_path: Path, recipe: str) -> None:
    source = broken_weight(tmp_path / "nan.onnx", np.nan)
    line = refusal(tmp_path, recipe, source, rows("perceptron"))
    assert line == "output 'y' of what it made holds NaN or infinity"


def test_a_quantiser_names_the_tensor_that_is_not_a_number(tmp_path: Path) -> None:
    source = broken_weight(tmp_path / "nan.onnx", np.nan)
    line = refusal(tmp_path, "ort-int8", source, rows("perceptron"))
    assert line == "tensor 'y' holds NaN on the calibration data"


def test_what_overflows_in_sixteen_bits_is_refused(tmp_path: Path) -> None:
    source = broken_weight(tmp_path / "large.onnx", 1e6)
    line = refusal(tmp_path, "ort-fp16", source, rows("perceptron"))
    assert line == "weight 'v' reaches 1e+06, and fp16 ends at 65504"


@pytest.mark.skipif(
    not {"avx512_fp16", "asimdhp"} & set(cpu_flags()), reason="this CPU has no fp16 arithmetic"
)
def test_answers_that_overflow_in_sixteen_bits_are_refused(tmp_path: Path) -> None:
    source = broken_weight(tmp_path / "large.onnx", 6e4)
    loud = {"x": rows("perceptron")["x"] * 1000}
    line = refusal(tmp_path, "openvino-fp16", source, loud, profile="raspberry-pi-5")
    assert line == "output 'y' of what it made holds NaN or infinity"


@pytest.mark.parametrize("recipe", QUANTISERS)
@pytest.mark.parametrize(
    ("calibration", "line"),
    [
        ({}, "quantisation needs calibration data, and there is none"),
        (
            {"x": np.zeros((0, WIDTH), np.float32)},
            "quantisation needs calibration data, and there is none",
        ),
        (
            {"x": np.full((32, WIDTH), 0.5, np.float32)},
            "the calibration data is the same value throughout, which gives no ranges",
        ),
        (
            {"x": np.ones((32, WIDTH + 1), np.float32)},
            "input 'x' of the network is [-1, 64], the calibration data [32, 65]",
        ),
        (
            {"x": np.ones((32, 8, 8), np.float32)},
            "input 'x' of the network is [-1, 64], the calibration data [32, 8, 8]",
        ),
        (
            {"image": np.ones((32, WIDTH), np.float32)},
            "the calibration data has no 'x', an input of the network; it has image",
        ),
    ],
    ids=["none", "empty", "constant", "other size", "other rank", "other name"],
)
def test_calibration_data_that_gives_no_ranges_is_refused(
    tmp_path: Path, recipe: str, calibration: Tensors, line: str
) -> None:
    source = perceptron(tmp_path / "source.onnx", 16)
    assert refusal(tmp_path, recipe, source, calibration) == line


FULL = """
import resource, sys
from pathlib import Path
from optimizer.errors import OptimizerError
from optimizer.passes import PassContext, find
from optimizer.profiles import load_profile
from tests.optimizer.small_networks import rows
recipe, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
context = PassContext(source, rows("perceptron"), out, load_profile("x86-64-amx"))
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
try:
    find(recipe).apply(context)
except OptimizerError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    "recipe",
    ["fp32", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ort-int8", "openvino-fp32"))],
)
def test_no_room_for_the_files_is_one_line_and_leaves_nothing(tmp_path: Path, recipe: str) -> None:
    source, out = perceptron(tmp_path / "source.onnx"), tmp_path / "out"
    out.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", FULL, recipe, str(source), str(out)],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=True,
    )  # fmt: skip
    line = run.stdout.strip()
    assert list(out.iterdir()) == []
    assert "\n" not in line
    assert line == f"DiskFull: {DiskFull.at(out)}"


def test_an_interrupted_recipe_leaves_nothing(tmp_path: Path) -> None:
    from optimizer.passes import Artifact, RecipeConfig, recipe
    from optimizer.passes.registry import forget_own, registering

    def stopped(context: PassContext, config: RecipeConfig) -> Artifact:
        (context.directory / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    with registering("a test's"):
        recipe("stopped", runtimes=("onnxruntime",), precision="fp32", config=RecipeConfig)(stopped)
    (tmp_path / "out").mkdir()
    source = NETWORKS["perceptron"](tmp_path / "source.onnx")
    context = PassContext(source, {}, tmp_path / "out", load_profile("x86-64-amx"))
    with pytest.raises(KeyboardInterrupt):
        find("stopped").apply(context)
    forget_own()
    assert list((tmp_path / "out").iterdir()) == []
