"""What the network sees: the data after the pipeline's own steps before the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.project import Project
from cloud.training.arrays import Rows
from cloud.training.errors import BadData
from edge_agent.pipeline import MODEL_STEP, Array, Pipeline, Rejected, Tensors, load_code
from edge_agent.runtime import Provenance
from optimizer.fine_tuning import LabelledRows

_CHUNK_ROWS: Final = 256


class _Capture:
    """A session that computes nothing and hands back what reached it."""

    provenance = Provenance("capture", "", "", "", 0)
    instances = 1

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        return dict(tensors)

    def close(self) -> None:
        pass


def network_inputs(project: Project, project_dir: Path, rows: Rows) -> tuple[Tensors, Rows]:
    """The network's input tensors for `rows`, and the rows that reach the network at all.

    A row that a checker refuses is left out: no device would ever answer it.

    Raises:
        StepError: a step cannot be loaded, configured or run.
        BadData: the checkers refuse every row.
    """
    load_code([project_dir / name for name in project.steps], project.name)
    names = [step.name for step in project.pipeline]
    steps = project.pipeline[: names.index(MODEL_STEP) + 1]
    pipeline = Pipeline(steps, _Capture(), project.inputs, (), scope=project.name)
    parts: list[Tensors] = []
    kept: list[NDArray[np.int64]] = []
    reason = ""
    for start in range(0, len(rows), _CHUNK_ROWS):
        indices = np.arange(start, min(start + _CHUNK_ROWS, len(rows)))
        for group in _answerable(pipeline, rows, indices):
            if isinstance(group, str):
                reason = group
                continue
            tensors, accepted = group
            parts.append(tensors)
            kept.append(accepted)
    if not parts:
        raise BadData(f"the pipeline's checkers refuse every row ({reason or 'no rows'})")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined, rows.take(np.concatenate(kept))


def labelled(tensors: Tensors, rows: Rows, *splits: str) -> LabelledRows:
    """The rows of these splits as the training loop takes them."""
    chosen = np.isin(rows.split, splits)
    part = rows.take(chosen)
    return LabelledRows(
        {name: array[chosen] for name, array in tensors.items()}, part.labels, part.weight
    )


def _answerable(
    pipeline: Pipeline, rows: Rows, indices: NDArray[np.int64]
) -> list[tuple[Tensors, NDArray[np.int64]] | str]:
    """The tensors of these rows together; row by row where a checker refuses the whole."""
    try:
        result = pipeline.run(rows.take(indices).inputs, trace=True)
    except Rejected as error:
        if len(indices) == 1:
            return [str(error)]
        return [
            group
            for index in indices
            for group in _answerable(pipeline, rows, np.array([index], dtype=np.int64))
        ]
    return [(result.steps[-1][1], indices)]
