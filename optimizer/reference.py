"""A member before any recipe: the accuracy to keep, and what quantisers calibrate on.

The exported network is put into the task's pipeline and answers the data on this machine, so
calibration sees exactly what the pipeline's processors hand to the network when it is served.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.pipeline import MODEL_STEP, Pipeline, PipelineError, Rejected, Tensors
from edge_agent.runtime import SessionError
from optimizer import bundle
from optimizer.errors import EvaluationFailed
from optimizer.evaluate import Accuracy, answer, batches, score
from optimizer.export import NetworkInterface, read_interface
from optimizer.passes import PassContext, find
from optimizer.profiles import THIS_MACHINE, load_profile
from optimizer.task import OptimizeTask, TrainedMember

_CALIBRATION_BATCH: Final = 64


@dataclass(frozen=True)
class Reference:
    """A member before any recipe: what quantisers calibrate on, and the accuracy to keep."""

    member: TrainedMember
    interface: NetworkInterface
    calibration: Tensors
    accuracy: Accuracy


def refer(task: OptimizeTask, member: TrainedMember) -> Reference:
    """Answer the task's data with the exported network itself.

    Raises:
        ExportFailed: the member's file is not an ONNX network.
        EvaluationFailed: the network cannot be opened, or the pipeline does not answer.
    """
    interface = read_interface(member.onnx_path)
    host = load_profile(THIS_MACHINE)
    with tempfile.TemporaryDirectory(prefix="skerry-reference-") as scratch:
        directory = Path(scratch)
        context = PassContext(member.onnx_path, {}, directory, host, task.seed)
        artifact = find("fp32").apply(context)
        bundle.copy_code(task, directory)
        manifest = bundle.draft_manifest(task, host, f"{member.name}/fp32", artifact, interface)
        try:
            pipeline = Pipeline.open(directory, manifest)
        except (PipelineError, SessionError) as error:
            raise EvaluationFailed(f"{member.name}: {error}") from error
        try:
            answers = answer(pipeline, task.data.inputs, bundle.batch_of(task.inputs))
            calibration = _network_inputs(pipeline, task.calibration, interface)
        finally:
            pipeline.close()
    accuracy = score(answers.labels, task.data.labels, task.data.names or task.labels)
    return Reference(member, interface, calibration, accuracy)


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
