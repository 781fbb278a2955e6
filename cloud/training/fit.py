"""Task "fit": train one member of the family, from scratch or from a parent's weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud.project import Project, TrainingSpec, load_project
from cloud.training.arrays import Rows
from cloud.training.errors import BadData, BadFunction, Diverged
from cloud.training.functions import import_function
from cloud.training.prepare import network_inputs
from edge_agent.runtime.session import Tensors
from optimizer.evaluate import score

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
    train = rows.split == "train"
    if not train.any():
        raise BadData("no row is left to train on")
    _check_logits(module, tensors, project)
    fit(
        module,
        {name: array[train] for name, array in tensors.items()},
        rows.take(train),
        project.training,
        report,
    )
    torch.save(module.state_dict(), directory / CHECKPOINT)
    judged = np.isin(rows.split, JUDGED_ON)
    if not judged.any():
        raise BadData("no row is held out to judge by; raise dataset.eval_share")
    logits = predict(module, {name: array[judged] for name, array in tensors.items()})
    answers = logits.argmax(axis=1).astype(np.int64)
    accuracy = score(answers, rows.labels[judged], project.labels)
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
    module = import_function(project_dir, project.family.build)(**project.family.members[member])
    if not isinstance(module, nn.Module):
        raise BadFunction(
            f"{project.family.build} must return a torch.nn.Module, not {type(module).__name__}"
        )
    return module


def fit(
    module: nn.Module,
    tensors: Tensors,
    rows: Rows,
    spec: TrainingSpec,
    report: Callable[[float, str], None],
) -> None:
    """Adam on the weighted cross-entropy of the first output.

    Raises:
        Diverged: the loss is not finite.
    """
    optimizer = torch.optim.Adam(
        module.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=spec.epochs)
    generator = torch.Generator().manual_seed(spec.seed)
    inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in tensors.values()]
    labels, weight = torch.from_numpy(rows.labels), torch.from_numpy(rows.weight.astype(np.float32))
    module.train()
    for epoch in range(spec.epochs):
        total = 0.0
        for batch in torch.randperm(len(rows), generator=generator).split(spec.batch_size):
            logits = _first(module(*(tensor[batch] for tensor in inputs)))
            losses = nn.functional.cross_entropy(logits, labels[batch], reduction="none")
            loss = (losses * weight[batch]).sum() / weight[batch].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        schedule.step()
        if not math.isfinite(total):
            raise Diverged(f"epoch {epoch + 1}: the loss is {total}; lower training.learning_rate")
        report((epoch + 1) / spec.epochs, f"epoch {epoch + 1}, loss {total / len(rows):.4f}")


def predict(module: nn.Module, tensors: Tensors, batch_rows: int = 1024) -> NDArray[np.float32]:
    """Logits FP32 [n, classes] of all rows."""
    module.eval()
    inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in tensors.values()]
    with torch.no_grad():
        parts = [
            _first(module(*(tensor[start : start + batch_rows] for tensor in inputs))).numpy()
            for start in range(0, len(inputs[0]), batch_rows)
        ]
    return np.concatenate(parts)


def _first(output: object) -> torch.Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, torch.Tensor):
        raise BadFunction(f"the network returns {type(first).__name__}, not a tensor of logits")
    return first


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
