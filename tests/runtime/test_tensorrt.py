"""Sessions of TensorRT: the real package's names where it is there, all else on a double."""

from __future__ import annotations

import ast
import inspect
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edge_agent.runtime import (
    ModelNotLoadable,
    RunFailed,
    RuntimeUnavailable,
    available,
    from_bfloat16,
    open_session,
    to_bfloat16,
    trt,
    trt_api,
    trt_build,
)
from edge_agent.runtime.trt import TensorRtSession
from edge_agent.runtime.trt_api import CUDA_NAMES, TENSORRT_NAMES, WEAK_TYPING_NAMES, Cuda
from edge_agent.wire.manifest import ModelSpec, TensorSpec
from tests.runtime.networks import (
    NETWORK,
    images,
    write_doubling,
    write_echo,
    write_linear,
    write_quantised,
)
from tests.runtime.tensorrt_double import FakeCuda, FakeTensorRt

SPEC = NETWORK.model_copy(update={"runtime": "tensorrt"})


class Gpu:
    """A machine with a GPU and a cache."""

    def __init__(self, directory: Path, version: int = 10, **cuda: int) -> None:
        self.memory = FakeCuda(**cuda)
        self.tensorrt = FakeTensorRt(self.memory, version)
        self.cache = directory / "cache"

    def open(self, path: Path, spec: ModelSpec = SPEC, max_batch: int = 8) -> TensorRtSession:
        package: Any = self.tensorrt
        cuda = Cuda(self.memory)
        return TensorRtSession(path, spec, package, cuda, max_batch=max_batch, cache_dir=self.cache)

    @property
    def flags(self) -> set[str]:
        return {flag.name for flag in self.tensorrt.builds[-1].flags}


@pytest.fixture
def gpu(tmp_path: Path) -> Gpu:
    return Gpu(tmp_path)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    (tmp_path / "slot").mkdir()
    return write_linear(tmp_path / "slot" / "model.onnx")


def spec_of(datatype: str, width: int = 3, precision: str = "fp32") -> ModelSpec:
    x, y = (TensorSpec(name=name, datatype=datatype, shape=(-1, width)) for name in "xy")
    return ModelSpec(
        runtime="tensorrt", file="m.onnx", precision=precision, inputs=(x,), outputs=(y,)
    )


# The names


def test_the_installed_package_has_every_name_that_is_used() -> None:
    tensorrt = pytest.importorskip("tensorrt", reason="tensorrt is not installed here")
    assert trt_api.missing_names(tensorrt, TENSORRT_NAMES) == []
    if int(tensorrt.__version__.split(".")[0]) < 11:
        assert trt_api.missing_names(tensorrt, WEAK_TYPING_NAMES) == []


def test_the_installed_cuda_has_every_name_that_is_used() -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed here")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert trt_api.missing_names(runtime, CUDA_NAMES) == []


def test_the_table_lists_every_name_that_the_sessions_use() -> None:
    listed = {part for name in (*TENSORRT_NAMES, *WEAK_TYPING_NAMES) for part in name.split(".")}
    receivers = {
        "builder", "network", "parser", "config", "profile", "tensor", "layer", "kept", "flags",
        "_trt", "tensorrt", "severity", "_engine", "engine", "_runtime", "_context",
    }  # fmt: skip
    own = {"__version__", "__name__", "dtype", "datatype", "device"}
    for module in (trt, trt_build):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute):
                receiver = getattr(node.value, "attr", getattr(node.value, "id", None))
                if receiver in receivers:
                    assert node.attr in listed | own, f"{receiver}.{node.attr}"


def test_a_package_without_a_name_is_refused_before_anything_is_built() -> None:
    package = FakeTensorRt(FakeCuda())
    package.OnnxParser = type("OnnxParser", (), {})
    with pytest.raises(RuntimeUnavailable, match=r"tensorrt 10\.0\.0 has no OnnxParser\.parse_fr"):
        trt_api.require(package, ("Builder", "OnnxParser.parse_from_file"))


# Where TensorRT cannot work


def test_without_package_or_gpu_the_reason_is_told_and_nothing_replaces_it(linear: Path) -> None:
    if "tensorrt" in available():
        pytest.skip("this machine has TensorRT and a GPU")
    with pytest.raises(RuntimeUnavailable, match="runtime tensorrt is unavailable: ") as caught:
        open_session(linear, SPEC)
    assert caught.value.reason == trt_api.obstacle()
    assert "not installed" in caught.value.reason or "no NVIDIA GPU" in caught.value.reason


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [
        ({"status": 35}, "cudaGetDeviceCount: CUDA driver version is insufficient"),
        ({"devices": 0}, "no GPU found"),
    ],
)
def test_a_missing_driver_or_gpu_is_told(cuda: dict[str, int], reason: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=reason):
        Cuda(FakeCuda(**cuda))


# Runs


def test_a_session_computes_what_the_network_says(gpu: Gpu, linear: Path) -> None:
    session = gpu.open(linear)
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    for count in (1, 3, 8, 2):
        x = images(count, seed=count)
        logits = session.run({"x": x, "more": x})["logits"]
        np.testing.assert_allclose(logits, x.reshape(-1, 64) @ weights, rtol=1e-4, atol=1e-4)
        assert logits.dtype == np.float32
    assert session.provenance.device == "Fake GPU"
    assert session.provenance.precision == "fp32"


def test_batches_above_the_engines_are_run_in_parts(gpu: Gpu, linear: Path) -> None:
    x = images(19)
    parts = gpu.open(linear, max_batch=8).run({"x": x})["logits"]
    np.testing.assert_allclose(parts, gpu.open(linear, max_batch=32).run({"x": x})["logits"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"y": images(1)}, "network input 'x' is missing"),
        ({"x": images(1).astype(np.float64)}, "input 'x' is float64, expected float32"),
        ({"x": np.zeros((1, 8, 9), np.float32)}, r"shape \(1, 8, 9\); the engine takes \(1, 8, 8"),
        ({"x": np.zeros((0, 8, 8), np.float32)}, r"shape \(0, 8, 8\)"),
        ({"x": np.zeros((8,), np.float32)}, r"shape \(8,\)"),
        ({"x": np.float32(1)}, r"shape \(\)"),
    ],
)
def test_an_unfit_input_fails_the_run_not_the_session(
    gpu: Gpu, linear: Path, tensors: dict[str, Any], message: str
) -> None:
    session = gpu.open(linear)
    with pytest.raises(RunFailed, match=message):
        session.run(tensors)
    assert session.run({"x": images(2)})["logits"].shape == (2, 10)


@pytest.mark.parametrize("version", [10, 11])
def test_bf16_goes_in_and_out_as_float32(version: int, tmp_path: Path) -> None:
    gpu = Gpu(tmp_path, version)
    path = write_doubling(tmp_path / "m.onnx", TensorProto.BFLOAT16)
    x = np.array([[1.0, 0.1, -7.77]], np.float32)
    session = gpu.open(path, spec_of("BF16", precision="bf16"))
    narrow = from_bfloat16(to_bfloat16(x))
    np.testing.assert_array_equal(session.run({"x": x})["y"], narrow * 2)
    assert session.provenance.precision == "bf16"


def test_another_type_than_the_manifests_is_refused(gpu: Gpu, tmp_path: Path) -> None:
    path = write_echo(tmp_path / "m.onnx", TensorProto.INT32)
    with pytest.raises(ModelNotLoadable, match="'x' is int32 in TensorRT, the manifest says INT64"):
        gpu.open(path, spec_of("INT64"))
    assert gpu.memory.live == {}


def test_threads_share_two_instances_without_mixing_answers(gpu: Gpu, linear: Path) -> None:
    session = gpu.open(linear, SPEC.model_copy(update={"instances": 2}))
    assert session.instances == 2
    batches = [images(1 + seed % 3, seed) for seed in range(6)]
    expected = [session.run({"x": batch})["logits"] for batch in batches]
    right: list[bool] = []

    def work(index: int) -> None:
        right.extend(
            np.array_equal(session.run({"x": batches[index]})["logits"], expected[index])
            for _ in range(20)
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 120


def test_closing_frees_every_buffer_and_stream(gpu: Gpu, linear: Path) -> None:
    session = gpu.open(linear, SPEC.model_copy(update={"instances": 3}))
    assert len(gpu.memory.live) == 12
    assert gpu.memory.streams == 3
    session.close()
    session.close()
    assert gpu.memory.live == {}
    assert gpu.memory.streams == 0
    with pytest.raises(RunFailed, match="closed"):
        session.run({"x": images(1)})


def test_fewer_instances_open_where_memory_is_short(
    tmp_path: Path, linear: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = 2 * 8 * (64 + 10) * 4
    gpu = Gpu(tmp_path, memory_bytes=2 * one + one // 2)
    with caplog.at_level(logging.WARNING):
        session = gpu.open(linear, SPEC.model_copy(update={"instances": 4}))
    assert session.instances == 2
    assert "tensorrt.fewer_instances wanted=4 opened=2" in caplog.text
    session.close()
    assert gpu.memory.live == {}


def test_too_little_memory_for_one_instance_is_one_clear_error(
    tmp_path: Path, linear: Path
) -> None:
    gpu = Gpu(tmp_path, memory_bytes=3000)
    with pytest.raises(ModelNotLoadable, match=r"cudaMalloc\w*: out of memory"):
        gpu.open(linear)
    assert gpu.memory.live == {}


# Precision


@pytest.mark.parametrize(
    ("version", "precision", "flags"),
    [(10, "fp32", set()), (10, "tf32", {"TF32"}), (10, "fp16", {"FP16"}), (11, "fp32", set())],
)
def test_only_the_precision_of_the_spec_is_allowed(
    version: int, precision: str, flags: set[str], tmp_path: Path, linear: Path
) -> None:
    gpu = Gpu(tmp_path, version)
    session = gpu.open(linear, SPEC.model_copy(update={"precision": precision}))
    assert gpu.flags == flags
    assert session.provenance.precision == precision


def test_version_11_takes_fp16_from_the_file_and_refuses_a_file_without(
    tmp_path: Path, linear: Path
) -> None:
    gpu = Gpu(tmp_path, 11)
    with pytest.raises(ModelNotLoadable, match=r"manifest says fp16, its types say fp32, and Tens"):
        gpu.open(linear, SPEC.model_copy(update={"precision": "fp16"}))
    path = write_doubling(tmp_path / "m.onnx", TensorProto.FLOAT16)
    session = gpu.open(path, spec_of("FP16", precision="fp16"))
    assert session.provenance.precision == "fp16"


def test_quantised_operators_are_what_makes_an_engine_int8(tmp_path: Path, linear: Path) -> None:
    gpu = Gpu(tmp_path)
    session = gpu.open(write_quantised(tmp_path / "q.onnx"), spec_of("FP32", 4, "int8"))
    assert session.provenance.precision == "int8"
    assert gpu.flags == {"INT8"}
    with pytest.raises(ModelNotLoadable, match="says int8, but it has no quantised operators"):
        gpu.open(linear, SPEC.model_copy(update={"precision": "int8"}))


# Building and keeping


def test_an_engine_is_built_once_and_never_beside_the_model(gpu: Gpu, linear: Path) -> None:
    gpu.open(linear).close()
    session = gpu.open(linear)
    assert len(gpu.tensorrt.builds) == 1
    assert session.run({"x": images(1)})["logits"].shape == (1, 10)
    assert [item.name for item in linear.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("change", ["weights", "precision", "max_batch", "version", "external"])
def test_whatever_the_engine_depends_on_builds_another(
    change: str, gpu: Gpu, tmp_path: Path, linear: Path
) -> None:
    (linear.parent / "unrelated.bin").write_bytes(b"1")
    (linear.parent / "weights").write_bytes(b"1")  # a name that the ONNX file mentions
    gpu.open(linear)
    spec, max_batch = SPEC, 8
    if change == "weights":
        write_linear(linear, seed=1)
    elif change == "precision":
        spec = SPEC.model_copy(update={"precision": "fp16"})
    elif change == "max_batch":
        max_batch = 9
    elif change == "external":
        (linear.parent / "weights").write_bytes(b"2")
    else:
        gpu.tensorrt.__version__ = "10.1.0"
    gpu.open(linear, spec, max_batch)
    assert len(gpu.tensorrt.builds) == 2
    (linear.parent / "unrelated.bin").write_bytes(b"2")
    gpu.open(linear, spec, max_batch)
    assert len(gpu.tensorrt.builds) == 2


def test_a_damaged_engine_is_built_again(gpu: Gpu, linear: Path) -> None:
    gpu.open(linear)
    (entry,) = gpu.cache.glob("*.engine")
    whole = entry.read_bytes()
    for damaged in (b"", b"{}\n", whole[:-1], whole.replace(b"onnx", b"ooox"), b"\xff" * 9):
        entry.write_bytes(damaged)
        before = len(gpu.tensorrt.builds)
        assert gpu.open(linear).run({"x": images(1)})
        assert len(gpu.tensorrt.builds) == before + 1
    assert entry.read_bytes() == whole


def test_kernel_timings_go_from_one_build_to_the_next(gpu: Gpu, linear: Path) -> None:
    gpu.open(linear)
    gpu.open(linear, max_batch=4)
    (timings,) = gpu.cache.glob("*.timings")
    assert timings.read_bytes() == b"+timed+timed"
    timings.write_bytes(b"damaged")
    gpu.open(linear, max_batch=2)
    assert timings.read_bytes() == b"+timed"


def test_old_engines_make_room(gpu: Gpu, linear: Path) -> None:
    for max_batch in range(1, trt_build.MAX_ENGINES + 4):
        gpu.open(linear, max_batch=max_batch)
    assert len(list(gpu.cache.glob("*.engine"))) == trt_build.MAX_ENGINES


def test_a_cache_that_others_can_write_to_is_not_used(
    gpu: Gpu, linear: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.cache.mkdir()
    gpu.cache.chmod(0o777)
    gpu.open(linear)
    gpu.open(linear)
    assert len(gpu.tensorrt.builds) == 2
    assert list(gpu.cache.iterdir()) == []
    assert "others may write there" in caplog.text


def test_without_a_place_for_the_cache_sessions_still_open(gpu: Gpu, linear: Path) -> None:
    gpu.cache.write_text("a file where the directory should be")
    assert gpu.open(linear).run({"x": images(1)})


def test_a_damaged_network_is_one_clear_error(gpu: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelNotLoadable, match="no such file"):
        gpu.open(path)
    path.write_bytes(b"not a network")
    with pytest.raises(ModelNotLoadable, match=r"^model\.onnx: cannot be loaded: ModelImporter:"):
        gpu.open(path)


def test_an_open_axis_besides_the_batch_needs_a_length(gpu: Gpu, tmp_path: Path) -> None:
    path = write_echo(tmp_path / "m.onnx", TensorProto.FLOAT, axes=("n", "m"))
    with pytest.raises(ModelNotLoadable, match="input 'x' has an open axis besides the batch"):
        gpu.open(path, spec_of("FP32", -1))
    with pytest.raises(ModelNotLoadable, match="the shape of 'y' depends on the data"):
        gpu.open(path, spec_of("FP32", 5))


def test_other_names_than_the_manifests_are_refused(gpu: Gpu, linear: Path) -> None:
    renamed = SPEC.inputs[0].model_copy(update={"name": "pixels"})
    with pytest.raises(ModelNotLoadable, match="its inputs are x, the manifest says pixels"):
        gpu.open(linear, SPEC.model_copy(update={"inputs": (renamed,)}))


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/agent:/x", "HOME": "/h"}, "/var/cache/agent"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c"),
        ({"HOME": "/h"}, "/h/.cache"),
        ({}, "/nonexistent/.cache"),
    ],
)
def test_the_cache_is_the_services_or_the_users(
    environment: dict[str, str], directory: str
) -> None:
    assert trt_build.cache_directory(environment) == Path(directory) / "skerry" / "tensorrt"
