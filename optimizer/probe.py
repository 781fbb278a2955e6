"""What a member costs before it is trained: how fast its export answers, and how large it is.

Weights hardly bear on either, so an untrained network tells.  A rough figure is enough: members are
only left out by it where they miss a budget many times over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_agent.measure import MeasureError, MeasureSettings, machine_lock, measure
from edge_agent.runtime import SessionError, Tensors, open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.errors import ExportFailed
from optimizer.export import NetworkInterface, export_onnx
from optimizer.halving import Entrant

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("skerry.optimizer")

Timer = Callable[[Path, NetworkInterface, Tensors], float | None]
"""Takes an ONNX file, its interface and one row of inputs; answers its p50 in ms, or `None`."""

_SETTINGS: Final = MeasureSettings(
    quick=True, min_duration_s=0.1, max_duration_s=2.0, min_queries=30, attempts=1
)


def time_here(path: Path, interface: NetworkInterface, row: Tensors) -> float | None:
    """p50 of single rows in ONNX Runtime on one thread of this machine; `None` if it was busy."""
    spec = ModelSpec(
        runtime="onnxruntime", file=path.name, inputs=interface.inputs, outputs=interface.outputs
    )
    try:
        session = open_session(path, spec)

        def issue(_: int) -> None:
            session.run(row)

        try:
            with machine_lock():
                measured = measure(
                    issue, scenario="single_stream", settings=_SETTINGS, percentile=0.5
                )
        finally:
            session.close()
    except (SessionError, MeasureError) as error:
        log.warning("probe.unmeasured file=%s cause=%s", path.name, error)
        return None
    return measured.p50_ms


def probe(
    name: str,
    module: nn.Module,
    example: Tensors,
    outputs: Sequence[str],
    directory: Path,
    timer: Timer = time_here,
) -> Entrant:
    """Export the untrained `module` below `directory` and time it.

    Args:
        example: a few rows of the network's inputs.

    Returns:
        What a race must know; a network that cannot be exported is one that says why.
    """
    path = directory / f"{name}.untrained.onnx"
    try:
        interface = export_onnx(module, example, path, outputs)
    except ExportFailed as error:
        return Entrant(name, failure=str(error))
    row = {key: array[:1] for key, array in example.items()}
    return Entrant(name, timer(path, interface, row), path.stat().st_size / 1024)
