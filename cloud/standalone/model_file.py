"""Task "optimize-model": the search for a network that stands alone, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from cloud.jobs.child import Report
from cloud.standalone.measuring import measurer_for
from edge_agent.runtime.npz import read_npz
from edge_agent.wire.manifest import StepSpec
from optimizer.budget import Budget
from optimizer.export import read_interface
from optimizer.model_file import NetworkRows, model_task, notes
from optimizer.passes import register_files
from optimizer.report import write_report
from optimizer.search import optimize
from optimizer.task import Progress

Json = dict[str, Any]

_BUDGETS = TypeAdapter(dict[str, Budget])
_RECIPES = TypeAdapter(tuple[StepSpec, ...])


def run(request: Json, directory: Path, report: Report) -> Json:
    """Write bundles and report below `out`.

    Args:
        request: `network` and `rows` (paths), `inputs` (names), `labels` (path of class indices),
            `output`, `names`, `agreement`, `profiles` (budgets), `recipes`, `recipe_code` (path
            or None), `primary`, `quick`, `exhaustive`, `time_limit_s`, `seed`, `out`,
            `cache_dir`, and if wanted `lab`, where to measure instead of here.

    Returns:
        An `OptimizeResult` as JSON.
    """
    out = Path(request["out"])
    arrays = read_npz(Path(request["rows"]))
    path = Path(request["network"])
    network = NetworkRows(
        path=path,
        interface=read_interface(path),
        output=request["output"],
        inputs={name: arrays[name] for name in request["inputs"]},
        labels=np.load(request["labels"], allow_pickle=False),
        names=tuple(request["names"]),
        agreement=bool(request["agreement"]),
    )
    if request["recipe_code"] is not None:
        code = Path(request["recipe_code"])
        register_files(code.parent, [code.name])
    task = model_task(
        network,
        _BUDGETS.validate_python(request["profiles"]),
        out / "bundles",
        primary=request["primary"],
        recipes=_RECIPES.validate_python(request["recipes"]),
        quick=bool(request["quick"]),
        exhaustive=bool(request["exhaustive"]),
        time_limit_s=request["time_limit_s"],
        cache_dir=Path(request["cache_dir"]),
        seed=int(request["seed"]),
    )

    def progress(at: Progress) -> None:
        report(at.fraction, at.text, at.left_s)

    with measurer_for(request) as measurer:
        found = optimize(task, progress=progress, measurer=measurer)
    result = found.model_copy(
        update={"notes": (*notes(network), *found.notes), "agreement": network.agreement}
    )
    write_report(result, out)
    dumped: Json = result.model_dump(mode="json")
    return dumped
