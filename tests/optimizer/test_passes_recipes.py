"""Every recipe on networks that it is for: opened in every runtime that it names, and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edge_agent.runtime import Tensors, available, cpu_flags, open_session
from edge_agent.wire.manifest import ModelSpec, RuntimeName
from optimizer.errors import RecipeFailed
from optimizer.passes import Artifact, PassContext, find, recipes
from optimizer.profiles import load_profile
from optimizer.saturation import relative_error
from tests.optimizer.small_networks import NETWORKS, rows, write


def make(
    directory: Path, recipe: str, network: str, profile: str = "x86-64-amx", **config: object
) -> Artifact:
    directory.mkdir(parents=True, exist_ok=True)
    source = NETWORKS[network](directory / "source.onnx")
    out = directory / "out"
    out.mkdir()
    context = PassContext(source, rows(network), out, load_profile(profile))
    artifact = find(recipe, config).apply(context)
    assert sorted(artifact.files) == sorted(path.name for path in out.iterdir())
    return artifact


def answers(
    path: Path, runtime: RuntimeName, tensors: Tensors, precision: str = "fp32"
) -> tuple[Tensors, str]:
    spec = ModelSpec(
        runtime=runtime, file=path.name, precision=precision, threads=1, inputs=(), outputs=()
    )
    session = open_session(path, spec)
    try:
        return session.run(tensors), session.provenance.precision
    finally:
        session.close()


def distances(directory: Path, artifact: Artifact, network: str) -> dict[str, tuple[float, str]]:
    """Distance to fp32 and the precision that ran, by runtime.  For TensorRT ONNX Runtime reads."""
    tensors = rows(network, 96)
    wanted, _ = answers(directory / "source.onnx", "onnxruntime", tensors)
    found = {}
    for runtime in artifact.runtimes:
        reader: RuntimeName = "onnxruntime" if runtime == "tensorrt" else runtime
        path = directory / "out" / artifact.entry
        given, precision = answers(path, reader, tensors, artifact.precision)
        found[runtime] = (relative_error(given, wanted), precision)
    return found


NNCF = pytest.mark.slow

CASES = [
    ("fp32", "attention", 1e-5, "fp32"),
    ("ort-fp16", "perceptron", 2e-3, None),
    ("ort-fp16", "attention", 2e-3, None),
    ("ort-fp16", "recurrent", 2e-3, None),
    ("ort-int8", "convolutions", 0.03, "int8"),
    ("ort-int8", "attention", 0.04, "int8"),
    ("ort-int8", "perceptron", 0.03, "int8"),
    ("ort-int8-entropy", "convolutions", 0.06, "int8"),
    ("ort-int8-percentile", "convolutions", 0.03, "int8"),
    ("ort-int8-dynamic", "recurrent", 0.03, "int8"),
    ("ort-int8-dynamic", "attention", 0.03, "int8"),
    ("ort-int8-weights", "perceptron", 0.02, "int8"),
    ("ort-int4-weights", "perceptron", 0.15, "int4"),
    ("openvino-fp32", "recurrent", 1e-5, "fp32"),
    ("openvino-fp16", "convolutions", 5e-3, "fp16"),
    ("openvino-bf16", "convolutions", 2e-2, "bf16"),
    ("tensorrt-fp16", "attention", 2e-3, None),
    ("tensorrt-int8", "convolutions", 0.06, "int8"),
    pytest.param("openvino-int8", "convolutions", 0.08, "int8", marks=NNCF),
    pytest.param("openvino-int8", "attention", 0.05, "int8", marks=NNCF),
    pytest.param("openvino-int8-mixed", "perceptron", 0.08, "int8", marks=NNCF),
    pytest.param("openvino-int8-weights", "perceptron", 0.02, "int8", marks=NNCF),
    pytest.param("openvino-int4-weights", "perceptron", 0.15, "int4", marks=NNCF),
]
NEEDS = {
    "openvino-fp16": {"avx512_fp16", "asimdhp"},
    "openvino-bf16": {"avx512_bf16", "amx_bf16"},
}


@pytest.mark.parametrize(("recipe", "network", "most", "precision"), CASES)
def test_what_a_recipe_makes_answers_like_fp32_in_every_runtime_that_it_names(
    tmp_path: Path, recipe: str, network: str, most: float, precision: str | None
) -> None:
    if recipe in NEEDS and not NEEDS[recipe] & set(cpu_flags()):
        pytest.skip(f"this CPU has none of {sorted(NEEDS[recipe])}")
    profile = {"openvino-fp16": "raspberry-pi-5"}.get(recipe, "x86-64-amx")
    artifact = make(tmp_path, recipe, network, profile)
    for runtime, (distance, ran) in distances(tmp_path, artifact, network).items():
        assert distance < most, runtime
        assert precision in (None, ran), runtime


def test_every_recipe_is_tried_on_a_network() -> None:
    tried = {getattr(case, "values", case)[0] for case in CASES}
    assert tried >= {name for name in recipes() if "qat" not in name and "/" not in name}


def test_fp16_files_have_fp32_ports_and_half_the_size(tmp_path: Path) -> None:
    artifact = make(tmp_path, "ort-fp16", "perceptron")
    entry = tmp_path / "out" / artifact.entry
    model = onnx.load(entry)
    kinds = {item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert entry.stat().st_size < 0.6 * (tmp_path / "source.onnx").stat().st_size
    assert artifact.notes == ("ONNX Runtime computes in fp32 here; only the file is in fp16",)


@pytest.mark.skipif("asimdhp" in cpu_flags(), reason="this CPU computes in fp16")
def test_fp16_that_is_widened_is_reported_as_what_it_is(tmp_path: Path) -> None:
    artifact = make(tmp_path, "ort-fp16", "perceptron")
    assert distances(tmp_path, artifact, "perceptron")["onnxruntime"][1] == "fp32"


@pytest.mark.parametrize(
    ("recipe", "network", "profile", "line"),
    [
        (
            "ort-int8-dynamic",
            "convolutions",
            "x86-64-vnni",
            "100% of its multiplications are conv",
        ),
        ("ort-int8-weights", "attention", "x86-64-vnni", r"no matrix has 65536 weights or more"),
        ("ort-int4-weights", "convolutions", "x86-64-vnni", r"the largest has 80\b"),
        ("openvino-bf16", "perceptron", "generic-x86-64", r"have no bf16 arithmetic"),
        ("openvino-fp16", "perceptron", "generic-x86-64", r"have no fp16 arithmetic"),
    ],
)
def test_what_a_recipe_is_not_for_is_refused_in_one_line(
    tmp_path: Path, recipe: str, network: str, profile: str, line: str
) -> None:
    with pytest.raises(RecipeFailed, match=line) as caught:
        make(tmp_path, recipe, network, profile)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_small_weights_are_smaller(tmp_path: Path) -> None:
    sizes = {}
    for recipe in ("fp32", "ort-int8-weights", "ort-int4-weights"):
        artifact = make(tmp_path / recipe, recipe, "perceptron")
        sizes[recipe] = (tmp_path / recipe / "out" / artifact.entry).stat().st_size
    assert sizes["ort-int8-weights"] < 0.5 * sizes["fp32"]
    assert sizes["ort-int4-weights"] < 0.35 * sizes["fp32"]


def test_small_matrices_stay_in_fp32(tmp_path: Path) -> None:
    make(tmp_path, "ort-int4-weights", "perceptron")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [node.op_type for node in graph.node if "MatMul" in node.op_type] == [
        "MatMulNBits",
        "MatMul",
    ]


def test_dynamic_weights_lose_a_bit_where_pairs_saturate(tmp_path: Path) -> None:
    widest = {}
    for profile in ("generic-x86-64", "x86-64-vnni"):
        make(tmp_path / profile, "ort-int8-dynamic", "perceptron", profile)
        stored = onnx.load(tmp_path / profile / "out" / "model.onnx").graph.initializer
        arrays = [onnx.numpy_helper.to_array(item) for item in stored]
        signed = [array for array in arrays if array.dtype == np.int8 and array.ndim == 2]
        widest[profile] = max(int(np.abs(array.astype(int)).max()) for array in signed)
    assert widest == {"generic-x86-64": 64, "x86-64-vnni": 127}


def test_tensorrt_gets_scales_without_zero_points_and_biases_in_fp32(tmp_path: Path) -> None:
    make(tmp_path, "tensorrt-int8", "convolutions")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    scaled = [node for node in graph.node if "uantizeLinear" in node.op_type]
    assert scaled
    for node in scaled:
        zero = stored[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert not any(array.dtype == np.int32 for array in stored.values())


def test_normalisations_stay_in_floats_and_matrices_do_not(tmp_path: Path) -> None:
    make(tmp_path, "ort-int8", "attention")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    quantised = {
        node.name: makers.get(node.input[1]) == "DequantizeLinear"
        for node in graph.node
        if node.name in ("scores", "norm", "head")
    }
    assert quantised == {"scores": True, "norm": False, "head": True}


def test_a_slim_network_has_no_more_nodes_than_it_needs(tmp_path: Path) -> None:
    """Exporters leave shape arithmetic and copies behind."""
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], "copy"),
        helper.make_node("Add", ["one", "one"], ["two"], "constant"),
        helper.make_node("Mul", ["a", "two"], ["b"], "twice"),
        helper.make_node("Identity", ["b"], ["y"], "copy_2"),
    ]
    source = write(tmp_path / "s.onnx", nodes, {"one": np.ones(1, np.float32)}, (4,))
    (tmp_path / "out").mkdir()
    x = {"x": np.ones((2, 4), np.float32) * np.arange(1, 5, dtype=np.float32)}
    artifact = find("fp32").apply(
        PassContext(source, x, tmp_path / "out", load_profile("x86-64-vnni"))
    )
    made = tmp_path / "out" / artifact.entry
    assert [node.op_type for node in onnx.load(made).graph.node] == ["Mul"]
    for runtime in sorted({"onnxruntime", "openvino"} & set(available())):
        given, _ = answers(made, runtime, x)  # type: ignore[arg-type]
        np.testing.assert_array_equal(given["y"], 2 * x["x"])
