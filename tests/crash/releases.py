"""A signed history of releases, and the stages of a device's life that follow it.

The real repositories, publisher and director sign it once.  Each stage keeps what the control plane
serves then, so that a device of any stage can be run without one.  Version `v` of each model
answers `v` times its input, so every answer tells which version gave it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from cloud.db.engine import open_sessions
from cloud.db.tables import Release
from cloud.publish import build_bundle, director_target, forms_of, publish_release
from cloud.signing import init_keys
from edge_agent.pipeline import golden
from edge_agent.wire.manifest import Limits, Manifest, ModelSpec, StepSpec, TensorSpec
from edge_agent.wire.messages import Desired, DesiredModel
from tests.update.conftest import PROFILE, World

DEVICE: Final = "dev-1"
MODELS: Final = ("digits", "letters")
PROBATION_S: Final = 0.02
WEIGHT_BYTES: Final = 150_000
"""Of incompressible weights, so that a bundle has three chunks."""

Versions = dict[str, int | None]
"""Version by model that serves; None where nothing does."""

_IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 4))
_SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 4))


@dataclass(frozen=True, slots=True)
class Stage:
    """One desired twin, and what the control plane serves while it stands.

    Attributes:
        name: what the device does to get here.
        directory: holds `image`, `director` and, beside it, `blobs`.
        before, after: what serves before the stage and when it is through.
        tried: what serves while the new versions are on probation.
        sick: models whose new versions fail their probation.
        again: the same releases, assigned anew and healthy.
    """

    name: str
    directory: Path
    desired: Desired
    before: Versions
    after: Versions
    tried: Versions
    sick: frozenset[str] = frozenset()
    again: Stage | None = None

    @property
    def new(self) -> dict[str, int]:
        """Versions by model that this stage names."""
        return {model: want.version for model, want in self.desired.models.items()}


class History:
    """Signs the stages one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True)
        migrated = directory / "empty.db"
        open_sessions(f"sqlite:///{migrated}").kw["bind"].dispose()
        keys = init_keys(directory / "keys", "passphrase")
        self._world = World(directory / "cloud", keys, migrated)
        self._world.enrol(DEVICE)
        self._served: Versions = dict.fromkeys(MODELS)
        self._assigned: dict[str, Release] = {}
        self._bundles: dict[tuple[str, int], str] = {}
        self._generation = 0
        self.roots = (self._world.image.root_json(), self._world.director.root_json())
        self.stages: list[Stage] = []

    def close(self) -> None:
        self._world.sessions.kw["bind"].dispose()

    def stage(
        self,
        name: str,
        versions: dict[str, int],
        *,
        sick: Sequence[str] = (),
        group: str | None = None,
    ) -> Stage:
        """Release and assign `versions`; `sick` ones fail their probation, with their group."""
        for model, version in versions.items():
            self._assigned[model] = self._release(model, version)
        before = dict(self._served)
        tried = before | versions
        given_up = set(versions) if sick and group else set(sick)
        after: Versions = {m: before[m] if m in given_up else tried[m] for m in MODELS}
        self._served = after
        desired, directory = self._assign(versions, group)
        desired_again, directory_again = self._assign(versions, group)
        again = Stage(f"{name} again", directory_again, desired_again, after, tried, tried)
        stage = Stage(name, directory, desired, before, after, tried, frozenset(sick), again)
        self.stages.append(stage)
        return stage

    def _assign(self, versions: dict[str, int], group: str | None) -> tuple[Desired, Path]:
        """Sign all assignments of a new generation, and keep what is served then."""
        self._generation += 1
        targets = [
            replace(
                director_target(release, generation=self._generation, probation_s=PROBATION_S),
                group=group if model in versions else None,
            )
            for model, release in self._assigned.items()
        ]
        self._world.director.assign(DEVICE, targets)
        wanted = {
            model: DesiredModel(
                target=self._assigned[model].target, version=self._assigned[model].version,
                counter=self._assigned[model].counter, generation=self._generation,
                group=group if model in versions else None,
            )
            for model in versions
        }  # fmt: skip
        directory = self._directory / "stages" / f"{self._generation}"
        for repository in ("image", "director"):
            shutil.copytree(self._directory / "cloud" / repository, directory / repository)
        return Desired(version=self._generation, models=wanted), directory

    def _release(self, model: str, version: int) -> Release:
        if (model, version) not in self._bundles:
            source = self._directory / "sources" / f"{model}-{version}"
            self._bundles[model, version] = self._world.blobs.put(bundle(source, model, version))
        sha256 = self._bundles[model, version]
        before = [self._assigned[model].bundle_sha] if model in self._assigned else []
        with self._world.sessions.begin() as session:
            forms = forms_of(session, self._world.blobs, sha256, before)
            release = publish_release(
                session, self._world.blobs, self._world.image,
                model, version, PROFILE, sha256, forms,
            )  # fmt: skip
        blobs = self._directory / "stages" / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        for encoding in release.info["encodings"]:
            for sha256 in (encoding["sha256"], encoding["chunks_sha256"]):
                (blobs / sha256).write_bytes(self._world.blobs.get(sha256))
        return release


def bundle(source: Path, model: str, version: int) -> bytes:
    """A raw bundle: scores = version · image.

    Versions 2 and 3, 4 and 5, … share most of their weights, so that a delta is worth it.
    """
    source.mkdir(parents=True)
    (source / "model.onnx").write_bytes(_network(float(version)))
    weights = random.Random(f"{model} {version // 2}").randbytes(WEIGHT_BYTES)
    own = random.Random(f"{model} {version}").randbytes(1000)
    (source / "weights.bin").write_bytes(own + weights[len(own) :])
    image = np.ones((1, 4), np.float32)
    golden.write(source / "golden.npz", {"image": image}, {"scores": version * image})
    manifest = Manifest(
        model=model, version=version, profile=PROFILE, variant="tiny/fp32",
        inputs=(_IMAGE,), outputs=(_SCORES,), pipeline=(StepSpec(name="model"),),
        network=ModelSpec(
            runtime="onnxruntime", file="model.onnx", inputs=(_IMAGE,), outputs=(_SCORES,)
        ),
        golden="golden.npz", limits=Limits(), files=(),
    )  # fmt: skip
    return build_bundle(source, manifest)


def _network(factor: float) -> bytes:
    kind, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "factor"], ["scores"])],
        "g",
        [helper.make_tensor_value_info("image", kind, ["n", 4])],
        [helper.make_tensor_value_info("scores", kind, ["n", 4])],
        [helper.make_tensor("factor", kind, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
