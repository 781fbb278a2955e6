"""A bundle as a CPU without VNNI would answer it, on a machine that has it.

int8 files for ONNX Runtime can answer differently there (see `saturation`).  Accuracy and known
answers of a profile of such CPUs are taken from here where it matters, so that what is chosen for
them is judged by what they will say.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.pipeline import Array, Pipeline, Tensors
from edge_agent.pipeline.code import execute
from edge_agent.runtime import Provenance, Session, open_session
from edge_agent.wire.manifest import Manifest, RuntimeName
from optimizer.bundle import GOLDEN_ROWS
from optimizer.evaluate import answer
from optimizer.passes import Artifact
from optimizer.profiles import THIS_MACHINE, HardwareProfile, load_profile
from optimizer.saturation import EmulatedNetwork, saturates, saturation_risk

NOTE: Final = "answers are those of a CPU that adds int8 products into 16 bits, emulated here: "

_ROWS: Final = 16
"""Calibration rows by which it is told whether anything saturates."""


def may_differ(artifact: Artifact, runtime: RuntimeName, profile: HardwareProfile) -> bool:
    """Whether CPUs of `profile` could answer otherwise than this machine."""
    return (
        runtime == "onnxruntime"
        and artifact.precision == "int8"
        and saturates(profile)
        and not saturates(load_profile(THIS_MACHINE))
    )


def what_saturates(path: Path, calibration: Tensors, profile: HardwareProfile) -> str:
    """One line on what saturates in the network in `path`; empty where nothing does.

    Args:
        calibration: inputs of the network, [n, ...] each.

    Raises:
        RecipeFailed: the file is no network that can be run.
    """
    count = min((len(array) for array in calibration.values()), default=0)
    if count == 0:
        return ""
    rows = np.unique(np.linspace(0, count - 1, min(_ROWS, count)).astype(np.int64))
    samples = {name: array[rows] for name, array in calibration.items()}
    risk = saturation_risk(path, samples, profile)
    return risk.note() if risk.saturated else ""


def open_emulated(directory: Path, manifest: Manifest) -> Pipeline:
    """`Pipeline.open` with the network emulated.

    Raises:
        StepError: the bundle's code or steps are at fault.
        SessionError, RecipeFailed: the network cannot be opened.
    """
    path = directory / manifest.network.file
    with ExitStack() as undo:
        code = None
        if manifest.code:
            code = execute([directory / name for name in manifest.code], manifest.model)
            undo.callback(code.release)
        session = _EmulatedSession(path, open_session(path, manifest.network))
        undo.callback(session.close)
        pipeline = Pipeline(
            manifest.pipeline, session, manifest.inputs, manifest.outputs, code=code
        )
        undo.pop_all()
        return pipeline


def answered_alike(one: Pipeline, other: Pipeline, inputs: Tensors, atol: float) -> Tensors:
    """Those rows of `inputs` that both answer alike; all where there are none.

    They are the known answers of a bundle that may meet both kinds of CPUs.
    """
    first, second = (answer(pipeline, inputs, GOLDEN_ROWS) for pipeline in (one, other))
    alike = first.labels == second.labels
    if first.scores is not None and second.scores is not None:
        apart = np.abs(first.scores - second.scores).reshape(len(alike), -1).max(axis=1)
        alike &= apart <= atol / 2  # refused rows are NaN, and not alike
    return {name: array[alike] for name, array in inputs.items()} if alike.any() else inputs


class _EmulatedSession:
    """Answers with the emulation; says of itself what the runtime would."""

    def __init__(self, path: Path, real: Session) -> None:
        self._real = real
        self._network = EmulatedNetwork(path)

    @property
    def provenance(self) -> Provenance:
        return self._real.provenance

    @property
    def instances(self) -> int:
        return 1

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        return self._network.run(tensors)

    def close(self) -> None:
        self._real.close()
