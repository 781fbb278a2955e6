"""Task "export": trained members as ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cloud.project import load_project
from cloud.training.arrays import Rows
from cloud.training.networks import load_member
from cloud.training.prepare import network_inputs
from optimizer.export import export_onnx

Json = dict[str, Any]

EXAMPLE_ROWS: Final = 4


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Write `MEMBER.onnx` for each member.

    Args:
        request: `project_dir`, `data` (path), `checkpoints`, a path by member, and `bases`: by
            derived member the one that it was made of.
    """
    project = load_project(Path(request["project_dir"]))
    project_dir = Path(request["project_dir"])
    train = Rows.open(Path(request["data"])).part("train")
    example, _ = network_inputs(project, project_dir, train)
    example = {name: array[:EXAMPLE_ROWS] for name, array in example.items()}
    checkpoints: dict[str, str] = request["checkpoints"]
    for index, (member, checkpoint) in enumerate(checkpoints.items()):
        report(index / len(checkpoints), f"exporting {member}")
        module = load_member(
            project, project_dir, member, Path(checkpoint), request.get("bases", {})
        )
        path = directory / f"{member}.onnx"
        export_onnx(module, example, path, project.family.outputs)
    return {"members": sorted(checkpoints)}
