"""Task "derive": one member made of a trained one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cloud.project import load_project
from cloud.training.arrays import Rows
from cloud.training.fit import CHECKPOINT
from cloud.training.networks import build_member, load_member
from cloud.training.trainer import ProjectTrainer
from optimizer.derive import DeriveContext, Wanted, find
from optimizer.derive.rebuilt import describe
from optimizer.errors import DeriveFailed, TrainingFailed

Json = dict[str, Any]


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Derive a member and train it; writes `checkpoint.pt`.

    Args:
        request: `project_dir`, `data` (path), `wanted` (a `Wanted` as JSON), `checkpoints` (paths
            by member, those of parent and teacher) and `earlier`, the path of the same derived
            member's checkpoint in the version that is retrained, or None.

    Returns:
        As the task "fit", and `base`, `notes`; or only `failure`, one line, where the network does
        not suit.
    """
    project_dir = Path(request["project_dir"])
    project = load_project(project_dir)
    wanted = Wanted.model_validate(request["wanted"])
    checkpoints = {name: Path(path) for name, path in request["checkpoints"].items()}
    rows = Rows.open(Path(request["data"]))
    trainer = ProjectTrainer(project, project_dir, rows, checkpoints, {}, report)
    started = time.monotonic()
    torch.manual_seed(project.training.seed)
    earlier = None
    if request.get("earlier"):
        bases = {wanted.name: wanted.parent}
        try:
            earlier = load_member(
                project, project_dir, wanted.name, Path(request["earlier"]), bases
            )
        except TrainingFailed:  # the architecture has changed since
            earlier = None
    context = DeriveContext(trainer, wanted.parent, wanted.teacher, earlier)
    try:
        derived = find(wanted.derivation, wanted.config).apply(context)
    except DeriveFailed as error:
        return {"failure": f"{wanted.name}: {error}"}
    fresh = build_member(project, project_dir, wanted.parent)
    torch.save(describe(fresh, derived.module), directory / CHECKPOINT)
    accuracy = trainer.accuracy(derived.module)
    return {
        "metrics": accuracy.model_dump(mode="json", exclude={"predictions"}),
        "seconds": round(time.monotonic() - started, 2),
        "parameters": sum(parameter.numel() for parameter in derived.module.parameters()),
        "warm_start": earlier is not None,
        "base": wanted.parent,
        "notes": list(derived.notes),
    }
