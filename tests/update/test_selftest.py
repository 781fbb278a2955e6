"""The self-test in its subprocess, on real networks: right, wrong, crashing, hanging, greedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest

from edge_agent.pipeline import golden
from edge_agent.update.ports import ChunkPort
from edge_agent.update.selftest import device_memory_mib, memory_limit_mib, run_selftest
from edge_agent.update.trust import Trust
from edge_agent.update.updater import open_updater
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec, TensorSpec

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 4))
SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 4))

Slot = Callable[..., Path]


def network(factor: float) -> bytes:
    """scores = image · factor."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["image", "factor"], ["scores"])],
        "g",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor("factor", onnx.TensorProto.FLOAT, [], [factor])],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )
    return model.SerializeToString()


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    """An unpacked bundle whose golden file says that scores are the image, doubled."""

    def make(model: bytes | None = None, code: str = "") -> Path:
        (tmp_path / "model.onnx").write_bytes(model if model is not None else network(2.0))
        image = np.arange(8, dtype=np.float32).reshape(2, 4)
        golden.write(tmp_path / "golden.npz", {"image": image}, {"scores": 2 * image})
        (tmp_path / "steps.py").write_text(code)
        manifest = Manifest(
            model="digits", version=1, profile="this-machine", variant="v",
            inputs=(IMAGE,), outputs=(SCORES,), pipeline=(StepSpec(name="model"),),
            code=("steps.py",) if code else (), golden="golden.npz",
            network=ModelSpec(
                runtime="onnxruntime", file="model.onnx", inputs=(IMAGE,), outputs=(SCORES,)
            ),
            files=(),
        )  # fmt: skip
        (tmp_path / "manifest.json").write_bytes(manifest.encode())
        return tmp_path

    return make


def test_a_right_version_passes(slot: Slot) -> None:
    result = run_selftest(slot())
    assert result.ok, result.detail
    assert result.detail == ""


def test_wrong_answers_fail_with_the_reason(slot: Slot) -> None:
    result = run_selftest(slot(network(2.5)))
    assert not result.ok
    assert "GoldenMismatch" in result.detail and "scores" in result.detail


def test_a_network_that_does_not_load_fails(slot: Slot) -> None:
    result = run_selftest(slot(b"not a network"))
    assert not result.ok and result.detail


def test_fault_28_a_crash_stays_in_the_subprocess(slot: Slot) -> None:
    result = run_selftest(slot(code="import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"))
    assert not result.ok and "SIGSEGV" in result.detail


def test_fault_28_a_hang_ends_at_the_time_limit(slot: Slot) -> None:
    result = run_selftest(slot(code="import time\ntime.sleep(60)\n"), timeout_s=1.5)
    assert not result.ok and "within 1.5 s" in result.detail
    assert result.elapsed_s < 10


def test_a_version_that_eats_the_memory_fails(slot: Slot) -> None:
    result = run_selftest(slot(code="block = bytearray(3 << 30)\n"), memory_mib=1024)
    assert not result.ok and "MemoryError" in result.detail


def test_without_a_limit_of_its_own_a_version_gets_half_of_the_devices_memory(slot: Slot) -> None:
    limit_mib = memory_limit_mib(device_memory_mib())
    result = run_selftest(slot(code=f"block = bytearray({limit_mib} << 20)\n"))
    assert not result.ok and "MemoryError" in result.detail


@pytest.mark.parametrize(("device_mib", "limit_mib"), [(512, 256), (400, 256), (8192, 4096)])
def test_the_limit_follows_the_device(device_mib: int, limit_mib: int) -> None:
    assert memory_limit_mib(device_mib) == limit_mib


@pytest.mark.parametrize(
    ("group", "limits", "mib"),
    [
        ("0::/a/b\n", {"a/b": "max\n", "a": f"{3 << 20}\n"}, 3),
        ("0::/a/b\n", {"a/b": f"{2 << 20}\n", "a": f"{3 << 20}\n", "": f"{1 << 20}\n"}, 1),
        ("1:name=old:/\n0::/\n", {"": f"{5 << 20}\n"}, 5),
        ("0::/../../elsewhere\n", {}, None),
        ("", {}, None),
        (None, {}, None),
    ],
)
def test_a_control_group_bounds_the_devices_memory(
    tmp_path: Path, group: str | None, limits: dict[str, str], mib: int | None
) -> None:
    cgroups, own = tmp_path / "cgroups", tmp_path / "own"
    for path, limit in limits.items():
        (cgroups / path).mkdir(parents=True, exist_ok=True)
        (cgroups / path / "memory.max").write_text(limit)
    if group is not None:
        own.write_text(group)
    whole = device_memory_mib(tmp_path / "none", tmp_path / "none")
    assert whole > 256
    assert device_memory_mib(cgroups, own) == (mib or whole)


def test_the_updater_gives_a_self_test_what_the_operator_set(slot: Slot, tmp_path: Path) -> None:
    updaters = {
        mib: open_updater(
            tmp_path / str(mib), trust=cast(Trust, None), fetch=lambda path: b"",
            chunks=cast(ChunkPort, None), activate=lambda model, path: None,
            report=lambda report: None, health=lambda model: None, selftest_memory_mib=mib,
        )
        for mib in (32, 512)
    }  # fmt: skip
    directory = slot()
    passed = {mib: each._tried(directory, lambda: False).ok for mib, (each, _) in updaters.items()}
    assert passed == {32: False, 512: True}
    for updater, store in updaters.values():
        updater._journal.close()
        store.close()


def test_the_child_sees_no_secrets_of_the_agents_environment(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_SECRET", "hunter2")
    code = "import os\nif 'SKERRY_SECRET' in os.environ: raise SystemExit(9)\n"
    assert run_selftest(slot(code=code)).ok


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)\n", "import os\nos._exit(0)\n"])
def test_a_version_that_ends_before_it_was_tried_fails(slot: Slot, code: str) -> None:
    result = run_selftest(slot(code=code))
    assert not result.ok
    assert "CodeNotLoadable" in result.detail or "ended before it was tried" in result.detail


def test_what_a_version_prints_does_not_matter(slot: Slot) -> None:
    result = run_selftest(slot(code="import sys\nprint('x' * 99)\nassert sys.stdin.read() == ''\n"))
    assert result.ok, result.detail
