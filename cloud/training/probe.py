"""Task "probe": what each untrained member costs, for a race among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cloud.project import load_project
from cloud.training.arrays import Rows
from cloud.training.export import EXAMPLE_ROWS
from cloud.training.networks import build_member
from cloud.training.prepare import network_inputs
from optimizer.probe import probe

Json = dict[str, Any]


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Export and time every member.

    Args:
        request: `project_dir` and `data` (path).

    Returns:
        `entrants`: an `Entrant` each, as JSON.
    """
    project_dir = Path(request["project_dir"])
    project = load_project(project_dir)
    train = Rows.open(Path(request["data"])).part("train")
    example, _ = network_inputs(project, project_dir, train)
    example = {name: array[:EXAMPLE_ROWS] for name, array in example.items()}
    members = project.family.all()
    entrants = []
    for index, member in enumerate(members):
        report(index / len(members), f"timing {member.name} untrained")
        torch.manual_seed(project.training.seed)
        module = build_member(project, project_dir, member.name)
        found = probe(member.name, module, example, project.family.outputs, directory)
        entrants.append(asdict(found))
    return {"entrants": entrants}
