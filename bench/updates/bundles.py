"""What is published of a subject: raw bundles of the old and the new version.

Made as a build makes them: exported by torch, quantised for a profile with VNNI, known answers of
each variant beside the network, packed as a deterministic tar.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import load, numpy_helper
from torch import nn

from bench.updates.subjects import Subject, Trained
from cloud.publish import build_bundle
from edge_agent.pipeline import Pipeline, golden
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec, TensorSpec
from optimizer.export import export_onnx
from optimizer.passes import PassContext, find
from optimizer.profiles import load_profile

PROFILE: Final = "x86-64-vnni"
_GOLDEN_ROWS: Final = 16
_ATOL: Final = 5e-2


@dataclass(frozen=True)
class Pair:
    """The raw bundles of two versions.

    Attributes:
        kind: "f32", "int8", or "int8_new_scales": quantised without regard to the old version.
        moved: share of the network's int8 values, or fp32 ones, that differ.
        note: what the optimizer says of the scales.
    """

    name: str
    kind: str
    old: bytes
    new: bytes
    moved: float
    note: str = ""


def pairs(trained: Trained, place: Path) -> list[Pair]:
    """The bundles of one subject in fp32 and in int8, with the old scales and with new ones.

    Args:
        place: an empty directory; the unpacked bundles stay in it.
    """
    subject, profile = trained.subject, load_profile(PROFILE)
    place.mkdir(parents=True)
    sources: dict[str, tuple[Path, NDArray[np.generic]]] = {}
    modules = {
        "old": (trained.old, trained.calibration),
        "new": (trained.new, trained.new_calibration),
    }
    for name, (module, rows) in modules.items():
        sources[name] = (place / f"{name}.onnx", rows)
        _export(subject, module, rows, sources[name][0])

    def made(kind: str, which: str, recipe: str, parent: Path | None) -> tuple[bytes, str]:
        source, rows = sources[which]
        directory = place / f"{which}-{kind}"
        directory.mkdir()
        context = PassContext(source, {"x": rows}, directory, profile, parent=parent)
        artifact = find(recipe).apply(context)
        version = 1 if which == "old" else 2
        return _bundle(subject, directory, version, rows), " ".join(artifact.notes)

    found = []
    old_f32, _ = made("f32", "old", "fp32", None)
    new_f32, _ = made("f32", "new", "fp32", None)
    found.append(_pair(subject, "f32", place, old_f32, new_f32))
    old_int8, _ = made("int8", "old", "ort-int8", None)
    parent = place / "old-int8"
    new_int8, note = made("int8", "new", "ort-int8", parent)
    found.append(_pair(subject, "int8", place, old_int8, new_int8, note))
    free, _ = made("int8_new_scales", "new", "ort-int8", None)
    found.append(_pair(subject, "int8_new_scales", place, old_int8, free))
    return found


def _pair(subject: Subject, kind: str, place: Path, old: bytes, new: bytes, note: str = "") -> Pair:
    before = "old-f32" if kind == "f32" else "old-int8"
    moved = _moved(place / before / "model.onnx", place / f"new-{kind}" / "model.onnx")
    return Pair(subject.name, kind, old, new, moved, note)


def _export(subject: Subject, module: nn.Module, rows: NDArray[np.generic], path: Path) -> None:
    export_onnx(module, {"x": rows[:4]}, path, ["logits"])


def _bundle(subject: Subject, directory: Path, version: int, rows: NDArray[np.generic]) -> bytes:
    inputs = (TensorSpec(name="x", datatype=subject.datatype, shape=(-1, *subject.item)),)
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, *subject.answer)),)
    manifest = Manifest(
        model=subject.name,
        version=version,
        profile=PROFILE,
        variant=f"{subject.name}/{directory.name.partition('-')[2]}".replace("_", "-"),
        inputs=inputs,
        outputs=outputs,
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=inputs, outputs=outputs),
        golden="golden.npz",
        golden_atol=_ATOL,
        files=(),
    )
    pipeline = Pipeline.open(directory, manifest)
    try:
        asked = {"x": rows[:_GOLDEN_ROWS] if len(subject.answer) == 1 else rows[:1]}
        golden.write(directory / "golden.npz", asked, pipeline.run(asked).tensors)
    finally:
        pipeline.close()
    return build_bundle(directory, manifest)


def _moved(old: Path, new: Path) -> float:
    """Share of the values of large tensors that differ."""
    before = {item.name: numpy_helper.to_array(item) for item in load(old).graph.initializer}
    differing = total = 0
    for item in load(new).graph.initializer:
        after = numpy_helper.to_array(item)
        if after.size >= 64 and item.name in before and before[item.name].shape == after.shape:
            differing += int(np.count_nonzero(after != before[item.name]))
            total += after.size
    return differing / max(total, 1)
