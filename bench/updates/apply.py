"""The memory that a delta takes on the device: two 100 MiB networks, one process.

The artefact is half fp32 and half int8, both moved everywhere by a little, so that every kind of
tensor is decoded; its weights are drawn, for only the sizes matter here.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.loads.errors import BenchError
from bench.updates.bundles import PROFILE
from bench.updates.line import task
from cloud.delta import make_delta
from cloud.publish import build_bundle
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec, TensorSpec

ARTEFACT_MIB: Final = 100
_TENSOR_MIB: Final = 4
_APPLY_S: Final = 300.0
_MAKE_S: Final = 180.0


@dataclass(frozen=True)
class Applied:
    """One delta, applied.

    Attributes:
        peak_mib: most resident memory over that of the idle process.
        baseline_mib: of the process with an agent's modules imported.
    """

    raw_mib: float
    delta_mib: float
    make_seconds: float
    seconds: float
    peak_mib: float
    baseline_mib: float


def measure(place: Path, mib: int = ARTEFACT_MIB) -> Applied:
    """Make two artefacts of `mib` MiB and a delta, and apply it.

    Raises:
        BenchError: there is no delta, or it cannot be applied.
    """
    place.mkdir(parents=True)
    old, new = (_artefact(place / str(version), version, mib) for version in (1, 2))
    made = make_delta(old, new, budget_s=_MAKE_S)
    if made is None:
        raise BenchError(f"no delta of {mib} MiB was made within {_MAKE_S:g} s")
    (place / "delta").write_bytes(made.data)
    (place / "old.tar").write_bytes(old)
    with tarfile.open(place / "old.tar") as tar:
        tar.extractall(place / "slot", filter="data")
    sha256 = hashlib.sha256(new).hexdigest()
    request = {
        "encoding": {
            "algo": "delta", "base_sha256": hashlib.sha256(old).hexdigest(),
            "sha256": hashlib.sha256(made.data).hexdigest(), "length": len(made.data),
            "chunks_sha256": sha256, "ram_needed": made.ram_needed,
        },
        "slot": str(place / "slot"), "delta": str(place / "delta"), "out": str(place / "out"),
        "length": len(new), "sha256": sha256,
    }  # fmt: skip
    with task("apply", request, place) as process:
        found = process.hear(_APPLY_S)
    if "error" in found:
        raise BenchError(f"apply: {found['error']}")
    return Applied(
        len(new) / 2**20,
        len(made.data) / 2**20,
        made.seconds,
        float(str(found["seconds"])),
        float(str(found["peak_mib"])),
        float(str(found["baseline_mib"])),
    )


def _artefact(directory: Path, version: int, mib: int) -> bytes:
    """A bundle whose network nobody runs: tensors of 4 MiB, alternately fp32 and int8."""
    directory.mkdir()
    fixed, moving = np.random.default_rng(1), np.random.default_rng(version)
    tensors = []
    for number in range(mib // _TENSOR_MIB):
        if number % 2:
            steps = np.clip(np.round(fixed.normal(0, 30, _TENSOR_MIB << 20)), -120, 120)
            moved = moving.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], len(steps))
            values = (steps + moved).astype(np.int8)
        else:
            real = fixed.normal(0, 0.05, _TENSOR_MIB << 18)
            values = (real + moving.normal(0, 0.0005, len(real))).astype(np.float32)
        tensors.append(numpy_helper.from_array(values, f"t{number}"))
    shape = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "artefact", shape, out, tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, directory / "model.onnx")
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1,)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1,)),)
    manifest = Manifest(
        model="artefact", version=version, profile=PROFILE, variant="artefact/mixed",
        inputs=inputs, outputs=outputs, pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=outputs),
        files=(),
    )  # fmt: skip
    return build_bundle(directory, manifest)
