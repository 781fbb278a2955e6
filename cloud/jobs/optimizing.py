"""Task "optimize": the search over members, recipes and profiles, and its report."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from cloud.jobs.child import Report
from cloud.project import Project, load_project
from cloud.standalone.measuring import measurer_for
from cloud.training.arrays import Rows
from cloud.training.trainer import ProjectTrainer
from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import StepSpec
from optimizer.evaluate import EvalData
from optimizer.passes import register_files
from optimizer.passes.proof import require_classes
from optimizer.report import write_report
from optimizer.search import optimize
from optimizer.task import OptimizeTask, Progress, TrainedMember

Json = dict[str, Any]

CALIBRATION_ROWS: Final = 512
GOLDEN_ROWS: Final = 64
"""Rows that known answers are chosen from."""

EVAL_SPLITS: Final = ("eval", "field")
"""Variants are compared on what the fleet sees as well; the golden rows are left to the gates."""


def run(request: Json, directory: Path, report: Report) -> Json:
    """Write `bundles/PROFILE/VARIANT/`, `report.html` and `report.json`.

    They go into `directory`, or into `out` where the request names it.

    Args:
        request: `project_dir`, `data` (path of rows), `members` (ONNX paths by name),
            `lineage` (by member its `checkpoint`, a path, its `parent` and `notes`) and `notes` on
            members that are not there, both only where members were trained here, `parents`
            (bundle tars by `PROFILE/MEMBER-RECIPE`), `version`, `quick`, `cache_dir`
            and `points` (what devices took, for profiles that this machine is not of);
            if wanted `out`, and `wishes` that go before the project's words: `profiles`, `recipes`,
            `exhaustive`, `time_limit_s`; and `lab`, where to measure instead of here.

    Returns:
        An `OptimizeResult` as JSON.
    """
    project = load_project(Path(request["project_dir"]))
    out = Path(request.get("out", directory))
    task = _wished(optimize_task(project, request, directory), out, request.get("wishes", {}))

    def progress(at: Progress) -> None:
        report(at.fraction, at.text, at.left_s)

    with measurer_for(request) as measurer:
        result = optimize(task, progress=progress, measurer=measurer)
    write_report(result, out)
    dumped: Json = result.model_dump(mode="json")
    return dumped


def optimize_task(project: Project, request: Json, directory: Path) -> OptimizeTask:
    """What the search is given: the project's own words, and rows by their split.

    The project's own recipes are registered.

    Raises:
        ConfigError: a file with recipes is broken.
        BadCalibration: the training rows are of one class.
    """
    register_files(Path(request["project_dir"]), project.recipe_code)
    rows = Rows.open(Path(request["data"]))
    judged = rows.part(*EVAL_SPLITS)
    train = rows.part("train")
    members: dict[str, str] = request["members"]
    lineage: dict[str, Json] = request.get("lineage", {})
    return OptimizeTask(
        model=project.model,
        version=int(request["version"]),
        members=tuple(
            _member(name, Path(path), lineage.get(name, {})) for name, path in members.items()
        ),
        profiles=project.profiles,
        pipeline=project.pipeline,
        inputs=project.inputs,
        outputs=project.outputs,
        labels=project.labels,
        calibration=_calibration(train, project.labels),
        data=EvalData(judged.inputs, judged.labels, project.labels),
        golden={name: array[:GOLDEN_ROWS] for name, array in rows.part("golden").inputs.items()},
        out_dir=directory / "bundles",
        image=project.image,
        code=tuple(Path(request["project_dir"]) / name for name in project.steps),
        sampling=project.sampling,
        privacy=project.privacy,
        quick=bool(request["quick"]),
        primary=project.metrics.primary,
        recipes=project.recipes,
        seed=project.training.seed,
        parent_dir=_unpacked(request["parents"], directory / "parents"),
        time_limit_s=project.measure.time_limit_s,
        cache_dir=Path(request["cache_dir"]),
        trainer=_trainer(project, Path(request["project_dir"]), rows, lineage),
        notes=tuple(request.get("notes", ())),
    )


def _trainer(
    project: Project, project_dir: Path, rows: Rows, lineage: Mapping[str, Json]
) -> ProjectTrainer | None:
    """What trains members further; `None` where there are no checkpoints."""
    if not lineage:
        return None
    return ProjectTrainer(
        project,
        project_dir,
        rows,
        {name: Path(known["checkpoint"]) for name, known in lineage.items()},
        {name: known["parent"] for name, known in lineage.items() if known["parent"]},
    )


def _calibration(train: Rows, labels: Sequence[str]) -> Tensors:
    """Rows spread evenly over the training data, which may be sorted by class."""
    count = min(CALIBRATION_ROWS, len(train))
    chosen = train.take(np.linspace(0, max(len(train) - 1, 0), count).astype(np.int64))
    require_classes(chosen.labels, labels)
    return chosen.inputs


def _member(name: str, path: Path, known: Json) -> TrainedMember:
    checkpoint = known.get("checkpoint")
    return TrainedMember(
        name,
        path,
        known.get("parent", ""),
        None if checkpoint is None else Path(checkpoint),
        tuple(known.get("notes", ())),
    )


def _wished(task: OptimizeTask, out: Path, wishes: Json) -> OptimizeTask:
    """The task as somebody wants it this time."""
    profiles = wishes.get("profiles") or list(task.profiles)
    recipes = tuple(StepSpec(**step) for step in wishes.get("recipes", ()))
    return replace(
        task,
        out_dir=out / "bundles",
        profiles={name: task.profiles[name] for name in profiles},
        recipes=recipes or task.recipes,
        exhaustive=bool(wishes.get("exhaustive", task.exhaustive)),
        time_limit_s=wishes.get("time_limit_s") or task.time_limit_s,
    )


def _unpacked(bundles: Mapping[str, str], directory: Path) -> Path | None:
    """The parents' bundles under their names; `None` where there are none."""
    for name, path in bundles.items():
        with tarfile.open(path) as tar:
            tar.extractall(directory / name, filter="data")
    return directory if bundles else None
