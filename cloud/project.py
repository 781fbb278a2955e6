"""The project file: one `skerry.yaml` beside the Python files it names.

Owns its schema, its checks, and the deterministic tar in which a project travels.

Rules:
    * Nothing of a project is executed here: functions and steps are found by reading the source.
      A project's code runs in child processes only (`cloud.jobs.executors`).
    * Every problem is one line that names file and line: `skerry.yaml:9: no function 'buld' …`.
    * The tar holds the YAML file and the files it lists, nothing else: equal files, equal bytes.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints

from cloud.errors import UserError
from cloud.gates import GateSpec
from cloud.project_checks import check_references
from edge_agent.wire.ids import Slug
from edge_agent.wire.manifest import ImageSpec, RelativePath, SamplingSpec, StepSpec, TensorSpec
from optimizer.budget import Budget, MetricName
from optimizer.config_file import Document
from optimizer.errors import ConfigError
from optimizer.family import FunctionName, ModelFamily, TrainingSpec
from optimizer.halving import HalvingSpec

PROJECT_FILE: Final = "skerry.yaml"
MAX_FILES: Final = 200
MAX_PROJECT_BYTES: Final = 16 * 1024 * 1024

CodePath = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.py$"),
]
"""A Python file below the project's directory."""

Share = Annotated[float, Field(ge=0.0, le=0.5)]


class ProjectError(UserError):
    """The project's files are wrong; the text names file and line."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(_Part):
    """Where labelled data comes from, and how it is split.

    Attributes:
        load: function without arguments that returns `(inputs, labels)`: a dict of arrays with a
            leading axis of n rows, and n class names.
        golden_share: share of the rows that is frozen, never trained on, and judges every version.
        eval_share: share of the rows on which variants are compared.
    """

    load: FunctionName
    golden_share: Share = 0.15
    eval_share: Share = 0.15
    seed: int = 0


class FamilySpec(ModelFamily):
    """A model family and the names of the network's outputs."""

    outputs: tuple[str, ...] = Field(default=("logits",), min_length=1)


class FamilyTraining(TrainingSpec):
    """How the members of the family are trained.

    Attributes:
        halving: race them instead of training each in full; a family with a `search` always does.
    """

    halving: HalvingSpec | None = None


class MetricsSpec(_Part):
    primary: MetricName = "macro_f1"


class MeasureSpec(_Part):
    """How variants are timed.

    Attributes:
        quick: just long enough to choose by; the figures say so.
        time_limit_s: a search begins nothing more after that, and chooses from what it has.
    """

    quick: bool = False
    time_limit_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class RetrainSpec(_Part):
    """When the field's labels start a retraining: see `cloud.retrain.RetrainPolicy`.

    The same fields and defaults, which a test compares: that package opens the database, and the
    project file is read in child processes that must start fast.
    """

    min_labels: int = Field(default=200, ge=1)
    max_accuracy_drop_points: float = Field(default=5.0, gt=0, le=100)
    cooldown_s: float = Field(default=3600.0, ge=0)
    automatic: bool = False
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_answers: int = Field(default=20, ge=1)
    window: int = Field(default=128, ge=1)


class RolloutSpec(_Part):
    """Policy of the project's rollouts.

    Attributes:
        needs_approval: a second person must approve a rollout before it starts.
    """

    needs_approval: bool = False


def _step(value: object) -> object:
    """`name`, or `{name: {key: value}}`, as the fields of a `StepSpec`."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        name, config = next(iter(value.items()))
        if isinstance(config, dict) or config is None:
            return {"name": name, "config": config or {}}
    if isinstance(value, dict) and set(value) <= {"name", "config"}:
        return value
    raise ValueError("a step is a name, or one name with its config")


PipelineStep = Annotated[StepSpec, BeforeValidator(_step)]


class Project(_Part):
    """A validated `skerry.yaml`.

    Attributes:
        labels: class names in the order of the network's outputs.
        code: files that the dataset and family functions need.
        steps: files shipped to devices; they register the pipeline's own steps.
        pipeline: steps in their order; "model" is the network.
        metrics: the primary metric of budgets and gates alike.
        image: how devices take images for the model; without it they take tensors and JSON.
        derive: further members made of trained ones, each a derivation with its config.
        recipes: what the optimizer tries, each a name with its config; empty tries all.
        recipe_code: files that register the project's own recipes.
        profiles: a budget for each hardware profile that the project serves.
    """

    name: Slug
    model: Slug
    labels: tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...] = Field(
        min_length=2
    )
    dataset: DatasetSpec
    family: FamilySpec
    training: FamilyTraining = FamilyTraining()
    code: tuple[CodePath, ...] = Field(min_length=1, max_length=MAX_FILES)
    steps: tuple[RelativePath, ...] = ()
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    pipeline: tuple[PipelineStep, ...] = Field(min_length=1)
    image: ImageSpec | None = None
    metrics: MetricsSpec = MetricsSpec()
    derive: tuple[PipelineStep, ...] = ()
    recipes: tuple[PipelineStep, ...] = ()
    recipe_code: tuple[CodePath, ...] = Field(default=(), max_length=MAX_FILES)
    measure: MeasureSpec = MeasureSpec()
    gates: GateSpec = GateSpec()
    profiles: dict[Slug, Budget] = Field(min_length=1)
    sampling: SamplingSpec = SamplingSpec()
    privacy: tuple[PipelineStep, ...] = ()
    retrain: RetrainSpec = RetrainSpec()
    rollout: RolloutSpec = RolloutSpec()

    @property
    def gate_spec(self) -> GateSpec:
        """The gates in the project's primary metric."""
        return self.gates.model_copy(update={"metric": self.metrics.primary})

    @property
    def halving(self) -> HalvingSpec | None:
        """How members race; `None` where each is trained in full."""
        return self.training.halving or (HalvingSpec() if self.family.search else None)

    def part(self, *fields: str) -> dict[str, JsonValue]:
        """These fields as JSON values, for the hash of a step that depends on them alone."""
        dumped: dict[str, JsonValue] = self.model_dump(mode="json", include=set(fields))
        return dumped


def load_project(directory: Path) -> Project:
    """Read and check the project in `directory`, without executing any of it.

    Raises:
        ProjectError: the first thing that is wrong, with its file and line.
    """
    try:
        document = Document.read(directory / PROJECT_FILE)
        project = document.validate(Project)
        check_references(document, project, directory)
    except ConfigError as error:
        raise ProjectError(str(error)) from error
    return project


def pack_project(directory: Path) -> bytes:
    """The project's files as a tar whose bytes depend on their names and contents alone.

    Raises:
        ProjectError: the project is wrong or too large.
    """
    project = load_project(directory)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted({PROJECT_FILE, *project.code, *project.steps, *project.recipe_code}):
            data = (directory / name).read_bytes()
            if buffer.tell() + len(data) > MAX_PROJECT_BYTES:
                raise ProjectError(f"{name}: the project exceeds {MAX_PROJECT_BYTES >> 20} MiB")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpack_project(data: bytes, dest: Path) -> Project:
    """Write a packed project below `dest`, which is created, and check it.

    Only plain files below `dest` are written, whatever the tar says.

    Raises:
        ProjectError: not a tar of a project, or too large.
    """
    if len(data) > MAX_PROJECT_BYTES + 1024 * 1024:
        raise ProjectError(f"the project exceeds {MAX_PROJECT_BYTES >> 20} MiB")
    dest.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for index, info in enumerate(tar):
                written += info.size
                if index > MAX_FILES or written > MAX_PROJECT_BYTES:
                    raise ProjectError("the project's tar holds too much")
                _write_member(tar, info, dest)
    except tarfile.TarError as error:
        raise ProjectError(f"not a project's tar: {error}") from error
    return load_project(dest)


def read_packed(data: bytes) -> Project:
    """Check a packed project without keeping its files.

    Raises:
        ProjectError: as `unpack_project`.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-project-") as directory:
        return unpack_project(data, Path(directory))


def _write_member(tar: tarfile.TarFile, info: tarfile.TarInfo, dest: Path) -> None:
    path = PurePosixPath(info.name)
    if not info.isreg() or path.is_absolute() or ".." in path.parts or "\\" in info.name:
        raise ProjectError(f"the project's tar holds {info.name[:100]!r}, which is no plain file")
    source = tar.extractfile(info)
    if source is None:
        raise ProjectError(f"{info.name[:100]}: cannot be read from the tar")
    target = dest.joinpath(*path.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read())
