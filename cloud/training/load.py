"""Task "load": call the project's dataset function and check what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.project import Project, load_project
from cloud.training.arrays import Rows
from cloud.training.errors import BadData, BadFunction
from cloud.training.functions import import_function
from edge_agent.pipeline import InputError, validate

Json = dict[str, Any]


def run(request: Json, directory: Path, report: Callable[[float, str], None]) -> Json:
    """Write `data.npz`: all rows, unsplit.

    Args:
        request: `project_dir`, where the project's files are.
    """
    project = load_project(Path(request["project_dir"]))
    report(0.0, "loading the dataset")
    loaded = import_function(Path(request["project_dir"]), project.dataset.load)()
    rows = as_rows(loaded, project)
    rows.save(directory / "data.npz")
    return {"rows": len(rows)}


def as_rows(loaded: object, project: Project) -> Rows:
    """What a dataset function returned, as rows with class indices.

    Raises:
        BadFunction: it is not a pair of arrays by name and labels.
        BadData: arrays or labels do not fit the project file.
    """
    where = project.dataset.load
    if not (isinstance(loaded, tuple) and len(loaded) == 2 and isinstance(loaded[0], Mapping)):
        raise BadFunction(f"{where} must return (inputs, labels), a dict of arrays and class names")
    inputs = {str(name): np.asarray(array) for name, array in loaded[0].items()}
    try:
        count = validate(inputs, project.inputs)
    except InputError as error:
        raise BadData(f"{where}: {error}") from error
    names = [str(label) for label in loaded[1]]
    if len(names) != count:
        raise BadData(f"{where}: {count} rows, but {len(names)} labels")
    return Rows(inputs, _indices(names, project))


def _indices(names: list[str], project: Project) -> NDArray[np.int64]:
    index = {label: position for position, label in enumerate(project.labels)}
    unknown = sorted(set(names) - set(index))
    if unknown:
        raise BadData(
            f"{project.dataset.load}: label '{unknown[0]}' is not one of the project's labels"
        )
    absent = sorted(set(index) - set(names))
    if absent:
        raise BadData(f"{project.dataset.load}: no row has the label '{absent[0]}'")
    return np.array([index[name] for name in names], dtype=np.int64)
