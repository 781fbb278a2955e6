"""Bundles of a small classifier of 2×2 pixels, unpacked or installed in an agent's directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cloud.publish import build_bundle, hash_files
from edge_agent.pipeline import golden
from edge_agent.update.store import SlotStore
from edge_agent.wire.manifest import (
    CostModel,
    Encoding,
    ImageSpec,
    Manifest,
    ModelSpec,
    ReleaseInfo,
    StepSpec,
    TensorSpec,
)

LABELS = ("dark", "light", "top")
PROFILE = "this-machine"

IMAGE = TensorSpec(name="image", datatype="UINT8", shape=(-1, 2, 2))
PIXELS = TensorSpec(name="image", datatype="FP32", shape=(-1, 4))
LOGITS = TensorSpec(name="logits", datatype="FP32", shape=(-1, 3))
ANSWER = (
    TensorSpec(name="label", datatype="INT64", shape=(-1,)),
    TensorSpec(name="scores", datatype="FP32", shape=(-1, 3)),
)

DARK = [[1, 2], [3, 4]]
LIGHT = [[201, 202], [203, 204]]
TOP = [[201, 202], [3, 4]]
BLIND = [[255, 255], [255, 255]]
"""Refused by the checker: above what the sensor gives."""


def write_bundle(
    directory: Path, version: int = 1, *, model: str = "shades", max_batch: int = 4
) -> Path:
    """An unpacked bundle; the sum of the scores is 1, the largest is the label's."""
    directory.mkdir(parents=True)
    # dark: nothing lit; light: all lit; top: only the upper row lit
    weights = np.array([[-1, 1, 1], [-1, 1, 1], [-1, 1, -2], [-1, 1, -2]], np.float32) * 4
    bias = np.array([3, -8, -1], np.float32) + np.float32(version) * 0
    network = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["image", "w"], ["product"]),
                helper.make_node("Add", ["product", "b"], ["logits"]),
            ],
            model,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
            [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
            doc_string=str(version),  # so that no two versions are the same bytes
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(network, directory / "model.onnx")
    pixels = np.array([DARK, LIGHT, TOP], np.uint8)
    logits = (pixels.reshape(3, 4).astype(np.float32) / np.float32(255)) @ weights + bias
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    golden.write(
        directory / "golden.npz",
        {"image": pixels},
        {"label": np.array([0, 1, 2]), "scores": scores.astype(np.float32)},
    )
    manifest = Manifest(
        model=model, version=version, profile=PROFILE, variant="linear/fp32",
        inputs=(IMAGE,), outputs=ANSWER, labels=LABELS,
        pipeline=(
            StepSpec(name="check.range", config={"min": 0, "max": 250}),
            StepSpec(name="scale", config={"factor": 1 / 255}),
            StepSpec(name="reshape", config={"shape": [4]}),
            StepSpec(name="model"),
            StepSpec(name="classify"),
        ),
        network=ModelSpec(
            runtime="onnxruntime", file="model.onnx", inputs=(PIXELS,), outputs=(LOGITS,)
        ),
        golden="golden.npz",
        cost=CostModel(per_item_us=1, fixed_us=10, max_batch=max_batch),
        image=ImageSpec(input="image", mode="L", max_pixels=10_000),
        files=hash_files(directory),
    )  # fmt: skip
    (directory / "manifest.json").write_bytes(manifest.encode())
    return directory


def install(agent: Path, bundle: Path, *, commit: bool = True) -> Path:
    """Install an unpacked bundle in an agent's directory, as the updater does; its slot."""
    manifest = Manifest.decode((bundle / "manifest.json").read_bytes())
    raw = build_bundle(bundle)
    sha256 = hashlib.sha256(raw).hexdigest()
    release = ReleaseInfo(
        model=manifest.model, version=manifest.version, profile=PROFILE, counter=manifest.version,
        encodings=(Encoding(algo="raw", sha256=sha256, length=len(raw), chunks_sha256=sha256),),
    )  # fmt: skip
    packed = bundle.parent / f"{sha256}.bundle"
    packed.write_bytes(raw)
    store = SlotStore(agent / "update")
    try:
        store.stage(packed, sha256, release)
        installed = store.switch(manifest.model, sha256, release, f"t/{manifest.version}")
        if commit:
            store.commit(manifest.model)
        return installed.path
    finally:
        store.close()
