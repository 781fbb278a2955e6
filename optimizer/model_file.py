"""A search for a network that stands alone: an ONNX file and rows, without a project.

The pipeline is the network and, behind it, the class with the largest score; a network whose answer
is something else needs a project, which says what its answers mean.

Rules:
    * Every fourth row is what quantisers calibrate on, the others judge; few rows do both, and a
      note says so.
    * Rows without labels are judged by the network's own answers in fp32: "accuracy" is then the
      share of answers that stay the same, and the result says that it is.
    * What is wrong with file or rows is found here, before anything is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.pipeline import InputError, validate
from edge_agent.runtime import SessionError, Tensors, open_session
from edge_agent.runtime.npz import read_npz
from edge_agent.wire.manifest import ModelSpec, StepSpec, TensorSpec
from optimizer.budget import Budget, MetricName
from optimizer.errors import BadRows, did_you_mean
from optimizer.evaluate import DEFAULT_BATCH, EvalData, batches, row_count
from optimizer.export import NetworkInterface, read_interface
from optimizer.task import OptimizeTask, TrainedMember

LABELS: Final = "labels"
NAMES: Final = "names"
MEMBER: Final = "model"

_CALIBRATION_STRIDE: Final = 4
_CALIBRATION_ROWS: Final = 512
_GOLDEN_ROWS: Final = 64
_FEW: Final = 32
"""So few rows are not divided."""

_MAX_NAME: Final = 63


@dataclass(frozen=True)
class NetworkRows:
    """A network, and rows that fit it.

    Attributes:
        output: name of the class scores.
        inputs: of the network, [n, …] each.
        labels: class index of each row, INT64 [n].
        names: of the classes, by index.
        agreement: the labels are the network's own answers in fp32.
    """

    path: Path
    interface: NetworkInterface
    output: str
    inputs: Tensors
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    agreement: bool


def read_network(path: Path, rows: Path, output: str = "") -> NetworkRows:
    """The network at `path` with the rows of an `.npz`: its inputs by their names, `labels` INT
    [n], and if wanted `names`, one for each class.

    Args:
        output: name of the class scores, where the network has several outputs.

    Raises:
        ExportFailed: not an ONNX file.
        BadRows: the rows do not fit the network or cannot tell variants apart, or the network does
            not answer them with finite scores of classes.
    """
    interface = read_interface(path)
    try:
        arrays = read_npz(rows)
    except ValueError as error:
        raise BadRows(str(error)) from error
    labels, names = arrays.pop(LABELS, None), arrays.pop(NAMES, None)
    count = _require_fitting(rows, interface, arrays)
    name = _scores_name(path, interface, output)
    asked = arrays if labels is None else _first(arrays, DEFAULT_BATCH)
    scores = _scores(path, interface, name, asked)
    if labels is None:
        known = scores.argmax(axis=1).astype(np.int64)
    else:
        known = _class_indices(rows, labels, count, scores.shape[1])
    if len(np.unique(known)) < 2:
        what = "the network answers" if labels is None else "the labels say"
        raise BadRows(
            f"{rows.name}: {what} class {known[0]} for every row; "
            "rows of at least two classes are needed to tell variants apart"
        )
    return NetworkRows(
        path,
        interface,
        name,
        arrays,
        known,
        _names(rows, names, scores.shape[1]),
        agreement=labels is None,
    )


def model_name(path: Path) -> str:
    """A name for the model that the file `path` holds: of its letters, digits and hyphens."""
    text = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")
    return text[:_MAX_NAME].rstrip("-") or MEMBER


def model_task(
    network: NetworkRows,
    profiles: Mapping[str, Budget],
    out_dir: Path,
    *,
    primary: MetricName | None = None,
    recipes: tuple[StepSpec, ...] = (),
    quick: bool = False,
    exhaustive: bool = False,
    time_limit_s: float | None = None,
    cache_dir: Path | None = None,
    seed: int = 0,
) -> OptimizeTask:
    """What a search for `network` is given; see `OptimizeTask` for the arguments.

    Args:
        primary: accuracy where `None` and the labels are the network's own answers, else macro-F1.
    """
    calibration, judged = _parts(network)
    return OptimizeTask(
        model=model_name(network.path),
        version=1,
        members=(TrainedMember(MEMBER, network.path),),
        profiles=profiles,
        pipeline=(
            StepSpec(name="model"),
            StepSpec(name="classify", config={"logits": network.output}),
        ),
        inputs=network.interface.inputs,
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=(-1, len(network.names))),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        ),
        labels=network.names,
        calibration=_take(network.inputs, _spread(calibration, _CALIBRATION_ROWS)),
        data=EvalData(_take(network.inputs, judged), network.labels[judged], network.names),
        golden=_take(network.inputs, _spread(calibration, _GOLDEN_ROWS)),
        out_dir=out_dir,
        quick=quick,
        primary=primary or ("accuracy" if network.agreement else "macro_f1"),
        recipes=recipes,
        seed=seed,
        exhaustive=exhaustive,
        time_limit_s=time_limit_s,
        cache_dir=cache_dir,
    )


def notes(network: NetworkRows) -> tuple[str, ...]:
    """What must be said of every figure of the search."""
    said = []
    if network.agreement:
        said.append(
            "the rows have no labels: accuracy is the share of answers that are those of fp32, "
            "and says nothing of how often either is right"
        )
    if len(network.labels) < _FEW:
        said.append("there are few rows: quantisers calibrate on the rows that judge them")
    return tuple(said)


def _parts(network: NetworkRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rows to calibrate on, and of those that judge."""
    every = np.arange(len(network.labels))
    if len(every) < _FEW:
        return every, every
    calibrates = every % _CALIBRATION_STRIDE == 0
    return every[calibrates], every[~calibrates]


def _spread(indices: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of them, from all over: rows may be sorted by class."""
    places = np.linspace(0, len(indices) - 1, min(most, len(indices)))
    return indices[np.unique(places.astype(np.int64))]


def _require_fitting(rows: Path, interface: NetworkInterface, arrays: Tensors) -> int:
    """Number of rows; refuses what the network cannot be given."""
    wanted = [spec.name for spec in interface.inputs]
    for spec in interface.inputs:
        if not spec.shape or spec.shape[0] > 1:
            raise BadRows(
                f"input '{spec.name}' is {list(spec.shape)}: its first axis must be the batch, "
                "free or of length 1; export the network with a free batch axis"
            )
    for name in wanted:
        if name not in arrays:
            hint = did_you_mean(name, arrays)
            raise BadRows(f"{rows.name} has no '{name}', an input of the network{hint}")
    for name in arrays:
        if name not in wanted:
            hint = did_you_mean(name, [*wanted, LABELS, NAMES])
            raise BadRows(f"{rows.name} has '{name}', which is no input of the network{hint}")
    if row_count(arrays) == 0:
        raise BadRows(f"{rows.name} holds no rows")
    # Rows are sent one by one to a network that takes no more.
    free = [spec.model_copy(update={"shape": (-1, *spec.shape[1:])}) for spec in interface.inputs]
    try:
        return validate(arrays, free)
    except InputError as error:
        raise BadRows(f"{rows.name} does not fit the network: {error}") from error


def _scores_name(path: Path, interface: NetworkInterface, output: str) -> str:
    """The output that holds [n, classes]."""
    ranks = {spec.name: len(spec.shape) for spec in interface.outputs}
    if output and output not in ranks:
        raise BadRows(f"{path.name} has no output '{output}'{did_you_mean(output, ranks)}")
    name = output or next((name for name, rank in ranks.items() if rank == 2), "")
    if not name or ranks[name] != 2:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in interface.outputs)
        raise BadRows(
            f"{path.name} answers with {shapes}, but class scores [rows, classes] are needed; "
            "what answers otherwise needs a project with steps behind the network"
        )
    return name


def _scores(
    path: Path, interface: NetworkInterface, name: str, inputs: Tensors
) -> NDArray[np.float64]:
    """Class scores of `inputs` in fp32, [n, classes], finite."""
    spec = ModelSpec(
        runtime="onnxruntime", file=path.name, inputs=interface.inputs, outputs=interface.outputs
    )
    batch = 1 if any(item.shape[0] == 1 for item in interface.inputs) else DEFAULT_BATCH
    try:
        session = open_session(path, spec)
        try:
            parts = [session.run(part)[name] for part in batches(inputs, batch)]
        finally:
            session.close()
    except SessionError as error:
        raise BadRows(f"ONNX Runtime cannot run the network: {error}") from error
    scores = np.concatenate(parts).astype(np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise BadRows(f"output '{name}' is {list(scores.shape)}; scores of two classes are needed")
    if not np.isfinite(scores).all():
        raise BadRows(f"output '{name}' of {path.name} holds NaN or infinity, in fp32 already")
    return scores


def _class_indices(
    rows: Path, labels: NDArray[np.generic], count: int, classes: int
) -> NDArray[np.int64]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise BadRows(
            f"{rows.name}: 'labels' is {labels.dtype} {list(labels.shape)}; "
            f"a class index is needed for each of {count} rows"
        )
    indices = labels.astype(np.int64)
    if indices.min() < 0 or indices.max() >= classes:
        wrong = int(indices[(indices < 0) | (indices >= classes)][0])
        raise BadRows(f"{rows.name}: label {wrong} is none of the network's {classes} classes")
    return indices


def _names(rows: Path, names: NDArray[np.generic] | None, classes: int) -> tuple[str, ...]:
    if names is None:
        return tuple(str(index) for index in range(classes))
    if names.shape != (classes,) or len(set(names.tolist())) != classes:
        raise BadRows(f"{rows.name}: 'names' must hold {classes} different names of classes")
    return tuple(str(name) for name in names.tolist())


def _first(inputs: Tensors, count: int) -> Tensors:
    return {name: array[:count] for name, array in inputs.items()}


def _take(inputs: Tensors, indices: NDArray[np.int64]) -> Tensors:
    return {name: array[indices] for name, array in inputs.items()}
