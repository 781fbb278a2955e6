"""What holds for the data that recipes are given and the files that they make.

Owns the checks alone; the recipes' own failures stand with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime import SessionError, Tensors, available, open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.errors import BadCalibration, ExportFailed, RecipeFailed
from optimizer.export import read_interface
from optimizer.passes.context import Artifact

_ROWS: Final = 2

_COMPILED: Final = "tensorrt"
"""Opening a network there compiles it for minutes: whoever measures it finds out."""


def require_fitting(source: Path, calibration: Tensors) -> None:
    """Check that calibration data has the names and shapes of the network's inputs.

    Raises:
        RecipeFailed: it has not; names the input.
    """
    if not calibration:
        return
    try:
        interface = read_interface(source)
    except ExportFailed as error:
        raise RecipeFailed(str(error)) from error
    for spec in interface.inputs:
        array = calibration.get(spec.name)
        if array is None:
            raise RecipeFailed(
                f"the calibration data has no '{spec.name}', an input of the network; "
                f"it has {', '.join(sorted(calibration))}"
            )
        pairs = zip(spec.shape[1:], array.shape[1:], strict=False)
        if len(spec.shape) != array.ndim or any(n not in (-1, m) for n, m in pairs):
            raise RecipeFailed(
                f"input '{spec.name}' of the network is {list(spec.shape)}, the calibration data "
                f"{list(array.shape)}"
            )
    counts = {len(array) for array in calibration.values()}
    if len(counts) > 1:
        raise RecipeFailed("the inputs of the calibration data have different numbers of rows")


def require_classes(labels: NDArray[np.int64], names: Sequence[str]) -> None:
    """Check that calibration rows are of more than one class.

    Args:
        labels: class index of each row; none at all is for the quantisers to refuse.

    Raises:
        BadCalibration: all are of one class, whose ranges would clip the others.
    """
    present = np.unique(labels)
    if len(labels) > 1 and len(present) == 1 and len(names) > 1:
        raise BadCalibration(
            f"all {len(labels)} calibration rows are of the class '{names[int(present[0])]}': "
            "quantisers need rows of every class"
        )


def require_sound(artifact: Artifact, directory: Path, calibration: Tensors) -> None:
    """Check that the files are there and answer some calibration rows with finite numbers.

    Where the runtime is not installed here, or there is no data, the files need only be there.

    Raises:
        RecipeFailed: a file is missing, cannot be opened or run, or an answer is not finite.
    """
    for name in (artifact.entry, *artifact.files):
        if not (directory / name).is_file():
            raise RecipeFailed(f"it names the file '{name}', which it did not write")
    rows = {name: array[:_ROWS] for name, array in calibration.items()}
    if artifact.runtime not in available() or artifact.runtime == _COMPILED:
        return
    if not rows or not all(map(len, rows.values())):
        return
    for name, array in _answers(artifact, directory, rows).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RecipeFailed(f"output '{name}' of what it made holds NaN or infinity")


def _answers(artifact: Artifact, directory: Path, rows: Tensors) -> Tensors:
    spec = ModelSpec(
        runtime=artifact.runtime,
        file=artifact.entry,
        precision=artifact.precision,
        inputs=(),
        outputs=(),
    )
    try:
        session = open_session(directory / artifact.entry, spec)
        try:
            return session.run(rows)
        finally:
            session.close()
    except SessionError as error:
        raise RecipeFailed(f"{artifact.runtime} cannot run what it made: {error}") from error
