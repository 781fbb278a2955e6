"""A member before any recipe: the accuracy to keep, and what quantisers calibrate on.

The exported network is put into the task's pipeline and answers the data on this machine, so
calibration sees exactly what the pipeline's processors hand to the network when it is served.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.pipeline import MODEL_STEP, Pipeline, PipelineError, Rejected, Tensors
from edge_agent.runtime import SessionError
from edge_agent.wire.manifest import StepSpec
from optimizer import bundle
from optimizer.cache import file_digest, tensors_digest
from optimizer.errors import EvaluationFailed, RecipeFailed
from optimizer.evaluate import Accuracy, batches
from optimizer.export import NetworkInterface, read_interface
from optimizer.making import Made, Source, Workshop
from optimizer.passes import find
from optimizer.profiles import THIS_MACHINE, HardwareProfile, load_profile
from optimizer.task import OptimizeTask, TrainedMember

FP32: Final = StepSpec(name="fp32")
RUNTIME: Final = "onnxruntime"

_CALIBRATION_BATCH: Final = 64
_INPUTS_NAME: Final = "calibration.npz"


@dataclass(frozen=True)
class Reference:
    """A member before any recipe.

    Attributes:
        made: its file as the recipe "fp32" leaves it.
        accuracy: what it answers on all of the task's data, on ONNX Runtime.
    """

    member: TrainedMember
    source: Source
    made: Made
    accuracy: Accuracy

    @property
    def interface(self) -> NetworkInterface:
        return self.source.interface

    @property
    def calibration(self) -> Tensors:
        return self.source.calibration


def refer(task: OptimizeTask, member: TrainedMember, workshop: Workshop) -> Reference:
    """Answer the task's data with the exported network itself.

    Raises:
        ExportFailed: the member's file is not an ONNX network.
        EvaluationFailed: the network cannot be opened, or the pipeline does not answer.
        OSError: the disk is full.
    """
    interface = read_interface(member.onnx_path)
    host = load_profile(THIS_MACHINE)
    bare = Source.of(member.name, member.onnx_path, interface, {})
    try:
        made = workshop.make(bare, find(FP32.name), FP32, host)
        calibration = _calibration(task, bare, made, host, workshop)
        try:
            evaluated = workshop.evaluate(bare, made, RUNTIME, host)
        except EvaluationFailed:
            # No known answers, no bundle; that is each candidate's to say, not the search's.
            evaluated = workshop.evaluate(bare, made, RUNTIME, host, golden=False)
    except (PipelineError, SessionError, EvaluationFailed, RecipeFailed) as error:
        raise EvaluationFailed(f"{member.name}: {error}") from error
    source = Source.of(member.name, member.onnx_path, interface, calibration)
    return Reference(member, source, made, evaluated.accuracy)


def _calibration(
    task: OptimizeTask, source: Source, made: Made, host: HardwareProfile, workshop: Workshop
) -> Tensors:
    """What reaches the network when the calibration inputs are sent."""
    key = workshop.key(
        what="calibration",
        network=made.sha,
        inputs=tensors_digest(task.calibration),
        pipeline=[step.model_dump(mode="json") for step in task.pipeline],
        interface=[spec.model_dump(mode="json") for spec in task.inputs],
        steps=[file_digest(path) for path in task.code],
    )
    if (known := workshop.cache.get("artifact", key)) is not None:
        with np.load(known.directory / _INPUTS_NAME, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    with tempfile.TemporaryDirectory(prefix="skerry-reference-") as scratch:
        directory = Path(scratch)
        made.entry.hand_out(directory)
        bundle.copy_code(task, directory)
        manifest = workshop.draft(source, made, host, f"{source.member}/fp32", RUNTIME)
        pipeline = Pipeline.open(directory, manifest)
        with contextlib.closing(pipeline):
            found = _network_inputs(pipeline, task.calibration, source.interface)
    if not any(array.dtype.hasobject for array in found.values()):
        with workshop.cache.making() as kept:
            np.savez(kept / _INPUTS_NAME, allow_pickle=False, **found)
            workshop.cache.put("artifact", key, {}, kept)
    return found


def _network_inputs(pipeline: Pipeline, inputs: Tensors, interface: NetworkInterface) -> Tensors:
    """What reaches the network when `inputs` are sent; refused batches are left out."""
    names = [spec.name for spec in interface.inputs]
    parts: list[Tensors] = []
    for part in batches(inputs, _CALIBRATION_BATCH):
        for group in _accepted(pipeline, part):
            reached = group
            for step, tensors in pipeline.run(group, trace=True).steps:
                if step == MODEL_STEP:
                    break
                reached = tensors or reached  # a checker's are empty
            parts.append({name: reached[name] for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names if parts}


def _accepted(pipeline: Pipeline, part: Tensors) -> list[Tensors]:
    """`part` whole where no checker minds, else the items that pass one by one."""
    try:
        pipeline.run(part)
    except Rejected:
        items = list(batches(part, 1))
        if len(items) == 1:
            return []
        return [group for item in items for group in _accepted(pipeline, item)]
    return [part]
