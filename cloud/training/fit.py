"""Task "fit": train one member of the family, from scratch or from a parent's weights."""

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
from cloud.training.functions import import_function
from cloud.training.prepare import network_inputs
from edge_agent.runtime.session import Tensors
from optimizer.evaluate import score
from optimizer.fine_tuning import LabelledRows, Training, predict

Json = dict[str, Any]

CHECKPOINT: Final = "checkpoint.pt"
JUDGED_ON: Final = ("eval",)


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Fit one member on the rows of `data.npz`; writes `checkpoint.pt`.

    Args:
        request: `project_dir`, `member`, `data` (path) and `warm_start`, the path of a
            parent's checkpoint or None.

    Returns:
        `metrics` on the rows of split "eval", `epochs`, `seconds`, `parameters`, `warm_start`.
    """
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
    Training(module, train, project.training).run(project.training.epochs, report)
    torch.save(module.state_dict(), directory / CHECKPOINT)
    if not len(judged):
        raise BadData("no row is held out to judge by; raise dataset.eval_share")
    answers = predict(module, judged.tensors).argmax(axis=1).astype(np.int64)
    accuracy = score(answers, judged.labels, project.labels)
    return {
        "metrics": accuracy.model_dump(mode="json", exclude={"predictions"}),
        "epochs": project.training.epochs,
        "seconds": round(time.monotonic() - started, 2),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "warm_start": warm,
    }


def build_member(project: Project, project_dir: Path, member: str) -> nn.Module:
    """The untrained network of a member.

    Raises:
        BadFunction: the family's function does not return a network.
    """
    module = import_function(project_dir, project.family.build)(**project.family.params(member))
    if not isinstance(module, nn.Module):
        raise BadFunction(
            f"{project.family.build} must return a torch.nn.Module, not {type(module).__name__}"
        )
    return module


def labelled(tensors: Tensors, rows: Rows, *splits: str) -> LabelledRows:
    """The rows of these splits as the training loop takes them."""
    chosen = np.isin(rows.split, splits)
    part = rows.take(chosen)
    return LabelledRows(
        {name: array[chosen] for name, array in tensors.items()}, part.labels, part.weight
    )


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
