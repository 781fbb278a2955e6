"""Making a member's files by a recipe, and answering the data with them: once each.

Both go through the cache.  Files are known by their content: two recipes, or two profiles, that
come to the same bytes share one evaluation.

Rules:
    * An evaluation does not depend on threads or instances, so the points that share files and a
      runtime share it.
    * What an evaluation leaves are also the known answers and the drift reference of the bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from edge_agent.pipeline import Pipeline, Tensors
from edge_agent.runtime import available, cpu_flags
from edge_agent.wire.manifest import Manifest, RuntimeName, StepSpec
from optimizer import bundle
from optimizer.cache import Cache, Entry, code_version, file_digest, key_of, share, tensors_digest
from optimizer.emulated import NOTE, answered_alike, may_differ, open_emulated, what_saturates
from optimizer.errors import RecipeFailed
from optimizer.evaluate import Accuracy, answer, score, select
from optimizer.export import NetworkInterface
from optimizer.passes import Artifact, PassContext, Recipe
from optimizer.profiles import HardwareProfile
from optimizer.task import OptimizeTask

PACKAGES: Final = (
    "numpy", "onnx", "onnxruntime", "openvino", "nncf", "onnxslim", "onnxscript", "torch",
)  # fmt: skip
_NO_PART_OF_FILES: Final = {
    "name", "title", "notes", "power_w", "price_usd", "price_for", "storage_gib", "clock_ghz",
}  # fmt: skip
"""What a profile says that no recipe can depend on."""


@dataclass(frozen=True)
class Source:
    """A member as recipes see it.

    Attributes:
        calibration: inputs of the network.
        digest: over the network and the calibration.
    """

    member: str
    onnx_path: Path
    interface: NetworkInterface
    calibration: Tensors
    digest: str

    @classmethod
    def of(
        cls, member: str, onnx_path: Path, interface: NetworkInterface, calibration: Tensors
    ) -> Source:
        digest = key_of(network=file_digest(onnx_path), calibration=tensors_digest(calibration))
        return cls(member, onnx_path, interface, calibration, digest)


@dataclass(frozen=True)
class Made:
    """Files of a recipe.

    Attributes:
        sha: over the names and the content of all files.
        kib: size of all files.
    """

    artifact: Artifact
    entry: Entry
    sha: str
    kib: float


@dataclass(frozen=True)
class Evaluated:
    """Answers of files on one runtime.

    Attributes:
        precision: what the runtime reports.
        entry: the known answers and the drift reference.
        note: where the answers are not those of this machine's CPU; else empty.
    """

    accuracy: Accuracy
    precision: str
    entry: Entry
    note: str = ""


class Workshop:
    """Makes and evaluates for one task."""

    def __init__(self, task: OptimizeTask, cache: Cache) -> None:
        self._task = task
        self.cache = cache
        self._base: dict[str, JsonValue] = {
            "code": code_version(),
            "packages": package_versions(),  # type: ignore[dict-item]
            "host": [platform.machine(), platform.python_version(), " ".join(cpu_flags())],
        }
        self._data = key_of(
            inputs=tensors_digest(task.data.inputs),
            labels=tensors_digest({"labels": task.data.labels}),
            golden=tensors_digest(task.golden),
            pipeline=[step.model_dump(mode="json") for step in task.pipeline],
            interface=[spec.model_dump(mode="json") for spec in (*task.inputs, *task.outputs)],
            names=[*task.labels, "", *task.data.names],
            steps=[file_digest(path) for path in task.code],
        )

    def key(self, **parts: JsonValue) -> str:
        """Key of something that also depends on our code, the packages and this machine."""
        return key_of(**self._base, **parts)

    def make(
        self,
        source: Source,
        recipe: Recipe,
        step: StepSpec,
        profile: HardwareProfile,
        parent: Path | None = None,
    ) -> Made:
        """The files of `recipe` for `source`.

        Raises:
            RecipeFailed: it cannot be applied, or what it needs is not installed.
            OSError: the disk is full.
        """
        require_installed(recipe)
        trainer = self._task.trainer if recipe.trains else None
        facts = profile.model_dump(mode="json", exclude=_NO_PART_OF_FILES)
        key = self.key(
            what="files",
            recipe=step.model_dump(mode="json"),
            recipe_code=recipe.code,
            source=source.digest,
            profile=facts,
            seed=self._task.seed,
            parent=None if parent is None else _directory_digest(parent),
            training=None if trainer is None else [source.member, trainer.fingerprint],
        )
        if (known := self.cache.get("artifact", key)) is not None:
            return _made(known)
        with self.cache.making() as directory, self.cache.making() as kept:
            artifact = recipe.apply(
                PassContext(
                    source=source.onnx_path,
                    calibration=source.calibration,
                    directory=directory,
                    profile=profile,
                    seed=self._task.seed,
                    parent=parent,
                    member=source.member,
                    trainer=trainer,
                )
            )
            for name in artifact.files:
                share(directory / name, kept / name)
            value: dict[str, JsonValue] = {
                "runtimes": list(artifact.runtimes),
                "entry": artifact.entry,
                "precision": artifact.precision,
                "notes": list(artifact.notes),
            }
            return _made(self.cache.put("artifact", key, value, kept))

    def evaluate(
        self,
        source: Source,
        made: Made,
        runtime: RuntimeName,
        profile: HardwareProfile,
        rows: int | None = None,
        *,
        golden: bool = True,
    ) -> Evaluated:
        """Answer the task's data.

        Args:
            rows: of the data, evenly spread; `None` for all.
            golden: leave known answers too, without which there is no bundle.

        Raises:
            EvaluationFailed: the pipeline does not answer, or not always alike.
            PipelineError, SessionError: it cannot be opened.
            OSError: the disk is full.
        """
        key = self.key(
            what="answers", files=made.sha, runtime=runtime, data=self._data, rows=rows,
            threads=profile.model_threads, golden=golden,
            other_cpu=may_differ(made.artifact, runtime, profile),
        )  # fmt: skip
        if (found := self.cache.get("accuracy", key)) is not None:
            return _evaluated(found)
        task, data = self._task, select(self._task.data, rows)
        with self.cache.making() as directory, self.cache.making() as kept:
            made.entry.hand_out(directory)
            bundle.copy_code(task, directory)
            manifest = self.draft(source, made, profile, source.member, runtime)
            pipeline, note = self._open(source, made, runtime, profile, directory, manifest)
            try:
                precision = pipeline.provenance.precision
                answers = answer(pipeline, data.inputs, bundle.batch_of(task.inputs))
                if golden:
                    place = kept / bundle.GOLDEN_NAME
                    known = task.golden
                    if note:
                        with contextlib.closing(Pipeline.open(directory, manifest)) as real:
                            known = answered_alike(pipeline, real, known, manifest.golden_atol)
                    bundle.write_golden(pipeline, known, place, manifest.golden_atol)
            finally:
                pipeline.close()
            accuracy = score(answers.labels, data.labels, data.names or task.labels)
            bundle.write_drift_reference(data.inputs, answers, kept / bundle.REFERENCE_NAME)
            value: dict[str, JsonValue] = {
                "accuracy": accuracy.model_dump(mode="json"),
                "precision": precision,
                "note": note,
            }
            return _evaluated(self.cache.put("accuracy", key, value, kept))

    def _open(
        self,
        source: Source,
        made: Made,
        runtime: RuntimeName,
        profile: HardwareProfile,
        directory: Path,
        manifest: Manifest,
    ) -> tuple[Pipeline, str]:
        """The pipeline that answers as CPUs of the profile do, and what is to be said of that."""
        if may_differ(made.artifact, runtime, profile):
            path = directory / made.artifact.entry
            if note := what_saturates(path, source.calibration, profile):
                return open_emulated(directory, manifest), NOTE + note
        return Pipeline.open(directory, manifest), ""

    def draft(
        self,
        source: Source,
        made: Made,
        profile: HardwareProfile,
        variant: str,
        runtime: RuntimeName,
        threads: int | None = None,
        instances: int = 1,
    ) -> Manifest:
        """A manifest without files; see `bundle.draft_manifest`."""
        return bundle.draft_manifest(
            self._task, profile, variant, made.artifact, source.interface,
            runtime=runtime, threads=threads, instances=instances,
        )  # fmt: skip

    def lay_out(self, directory: Path, made: Made, evaluated: Evaluated) -> None:
        """Put all files of a bundle but its manifest into `directory`, which is made."""
        directory.mkdir(parents=True, exist_ok=True)
        made.entry.hand_out(directory)
        evaluated.entry.hand_out(directory)
        bundle.copy_code(self._task, directory)


def package_versions() -> dict[str, str]:
    """Versions of what results depend on, as far as it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def require_installed(recipe: Recipe) -> None:
    """Refuse a recipe whose runtime or quantiser is not there.

    Raises:
        RecipeFailed: names what is missing.
    """
    absent = [name for name in recipe.packages if importlib.util.find_spec(name) is None]
    if recipe.runtime not in available():
        absent.insert(0, recipe.runtime)
    if absent:
        raise RecipeFailed(
            f"{', '.join(absent)} is not installed here; it comes with skerry[train]"
        )


def _made(entry: Entry) -> Made:
    value: Any = entry.value
    artifact = Artifact(
        tuple(value["runtimes"]), value["entry"], entry.files, value["precision"],
        tuple(value["notes"]),
    )  # fmt: skip
    size = sum((entry.directory / name).stat().st_size for name in entry.files)
    return Made(artifact, entry, _directory_digest(entry.directory, entry.files), size / 1024)


def _evaluated(entry: Entry) -> Evaluated:
    value: Any = entry.value
    return Evaluated(
        Accuracy.model_validate(value["accuracy"]), value["precision"], entry, value["note"]
    )


def _directory_digest(directory: Path, names: tuple[str, ...] | None = None) -> str:
    """SHA-256 over names and content of the files in `directory`."""
    if names is None:
        names = tuple(path.name for path in directory.iterdir() if path.is_file())
    content = {name: file_digest(directory / name) for name in names}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
