"""The example from its project file to a better second version, on a real worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray
from scipy import ndimage
from sqlalchemy import select

from cloud import datasets
from cloud.db.tables import GateDecision, Label, ModelVersion, Sample, Variant
from cloud.registry import models as registry
from edge_agent.wire.manifest import TensorSpec
from edge_agent.wire.samples import SampleHeader

if TYPE_CHECKING:
    from tests.jobs.conftest import ControlPlane

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
ROTATION_DEGREES = 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def turned(images: NDArray[np.float32]) -> NDArray[np.float32]:
    rotated = ndimage.rotate(images, ROTATION_DEGREES, axes=(2, 1), reshape=False, order=1)
    return np.clip(rotated, 0, 16).astype(np.float32)


def add_field_samples(plane: ControlPlane, images: NDArray[np.float32], labels: list[str]) -> None:
    """What ingest would have stored of labelled requests."""
    now = time.time()
    with plane.sessions.begin() as session:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            spec = TensorSpec(name="image", datatype="FP32", shape=(1, 8, 8))
            header = SampleHeader(
                sample_id=f"s{index}", prediction_id=f"p{index}", model="digits", version=1,
                policy="uniform", inclusion_prob=0.5, taken_at=now, tensors=(spec,), predicted="0",
            )  # fmt: skip
            session.add(
                Sample(
                    id=f"s{index}", prediction_id=f"p{index}", device="d", model="digits",
                    version=1, policy="uniform", inclusion_prob=0.5, taken_at=now, received_at=now,
                    predicted="0", header=header.model_dump(mode="json"),
                    blob=plane.blobs.put(zstandard.compress(image[None].tobytes())),
                )
            )  # fmt: skip
            session.add(
                Label(
                    project="digits", prediction_id=f"p{index}", device="d", label=label,
                    source="correction", model_version=1, at=now,
                )
            )  # fmt: skip


def test_a_version_is_built_and_retrained_on_what_the_field_taught(plane: ControlPlane) -> None:
    plane.apply(DIGITS)
    started = time.monotonic()
    first = plane.run("build", "digits", 200)
    build_s = time.monotonic() - started
    assert first.state == "succeeded", first.error
    for member in first.result["members"].values():
        assert member["macro_f1"] >= 0.95
    assert set(first.result["selected"]) == {"this-machine", "generic-x86-64"}
    with plane.sessions.begin() as session:
        recipes = {
            variant.name.split("/")[1]
            for variant in session.scalars(select(Variant).where(Variant.version == 1))
            if variant.bundle_sha and plane.blobs.has(variant.bundle_sha)
        }
        assert recipes == {"fp32", "ort-int8", "openvino-int8"}
        for state in ("approved", "published", "champion"):
            registry.transition(session, "digits", 1, state, "test")  # type: ignore[arg-type]
        base = datasets.read(session, plane.blobs, first.result["dataset"])
    picked = base.part("eval", "golden", "train").take(np.arange(500))
    names = [base.classes[index] for index in picked.labels]
    add_field_samples(plane, turned(picked.inputs["image"]), names)

    started = time.monotonic()
    second = plane.run("retrain", "digits", 200)
    retrain_s = time.monotonic() - started
    assert second.state == "succeeded", second.error
    with plane.sessions() as session:
        version = session.get(ModelVersion, ("digits", 2))
        gates = {
            gate.gate: gate
            for gate in session.scalars(
                select(GateDecision).where(GateDecision.subject == "model:digits:2")
            )
        }
        data = datasets.get(session, second.result["dataset"])
        notes = [
            " ".join(variant.measurement["notes"])
            for variant in session.scalars(
                select(Variant).where(Variant.version == 2, Variant.name.endswith("/ort-int8"))
            )
        ]
    assert version is not None
    assert version.parent_version == 1
    assert version.metrics["members"]["small"]["warm_start"] is True
    assert data.parent == first.result["dataset"]
    assert data.manifest["splits"]["field"] > 100
    assert notes and all("parent version" in note for note in notes), notes
    assert {gate.verdict for gate in gates.values()} == {"pass"}, {
        name: gate.reason for name, gate in gates.items()
    }
    for profile in ("this-machine", "generic-x86-64"):
        assert f"{profile}/non_inferiority" in gates
        field = gates[f"{profile}/field_improvement"].evidence
        assert field["champion"] < 0.75
        assert field["candidate"] > field["champion"] + 0.15
    print(f"build {build_s:.0f} s, retrain {retrain_s:.0f} s")
