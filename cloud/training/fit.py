"""Task "fit": train one member of the family, from scratch or from a parent's weights.

A training may end after some of its epochs and go on in another process as if it had not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from cloud.project import Project, load_project
from cloud.training.arrays import Rows
from cloud.training.errors import BadData, BadFunction
from cloud.training.networks import build_member
from cloud.training.prepare import labelled, network_inputs
from cloud.training.trainer import JUDGED_ON
from edge_agent.runtime.session import Tensors
from optimizer.errors import TrainingFailed
from optimizer.evaluate import score
from optimizer.fine_tuning import Training, predict

Json = dict[str, Any]

CHECKPOINT: Final = "checkpoint.pt"
STATE: Final = "state.pt"


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Fit one member on the rows of `data.npz`; writes `checkpoint.pt`.

    Args:
        request: `project_dir`, `member`, `data` (path) and `warm_start`, the path of a
            parent's checkpoint or None.  To train for some epochs only: `until`, counted from the
            start, and `state`, the path of what an earlier run left as `state.pt`, or None.

    Returns:
        `metrics` on the rows of split "eval", `epochs`, `seconds`, `parameters`, `warm_start`;
        with `until` only `failure`, one line, where the network cannot be trained.
    """
    try:
        return _run(request, directory, report)
    except TrainingFailed as error:
        if "until" not in request:
            raise
        return {"failure": str(error)}


def _run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    project = load_project(Path(request["project_dir"]))
    project_dir = Path(request["project_dir"])
    rows = Rows.open(Path(request["data"]))
    tensors, rows = network_inputs(project, project_dir, rows)
    started = time.monotonic()
    torch.manual_seed(project.training.seed)
    module = build_member(project, project_dir, str(request["member"]))
    warm = _warm_start(module, request.get("warm_start"))
    train, judged = labelled(tensors, rows, "train"), labelled(tensors, rows, *JUDGED_ON)
    if not len(train):
        raise BadData("no row is left to train on")
    _check_logits(module, tensors, project)
    training = Training(module, train, project.training)
    until = int(request.get("until", project.training.epochs))
    if request.get("state"):
        training.resume(torch.load(str(request["state"]), weights_only=True))
    training.run(until, report)
    torch.save(module.state_dict(), directory / CHECKPOINT)
    if until < project.training.epochs:
        torch.save(training.state(), directory / STATE)
    if not len(judged):
        raise BadData("no row is held out to judge by; raise dataset.eval_share")
    answers = predict(module, judged.tensors).argmax(axis=1).astype(np.int64)
    accuracy = score(answers, judged.labels, project.labels)
    return {
        "metrics": accuracy.model_dump(mode="json", exclude={"predictions"}),
        "epochs": until,
        "seconds": round(time.monotonic() - started, 2),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "warm_start": warm,
    }


def _check_logits(module: nn.Module, tensors: Tensors, project: Project) -> None:
    shape = predict(module, {name: array[:2] for name, array in tensors.items()}).shape
    if shape[1:] != (len(project.labels),):
        raise BadFunction(
            f"{project.family.build}: the network answers with shape {list(shape)}, "
            f"expected one logit for each of {len(project.labels)} labels"
        )


def _warm_start(module: nn.Module, path: object) -> bool:
    """Take over a parent's weights where they fit this network; False where they do not."""
    if not path:
        return False
    try:
        module.load_state_dict(torch.load(str(path), weights_only=True))
    except RuntimeError:  # the architecture has changed since
        return False
    return True
