"""The accuracy fallback on real networks: layers of a file, what they cost, a derived point.

Owns what `fallback` leaves to its caller.  A layer is an operator with weights and what follows it
up to the next one; its cost in fp32 is what ONNX Runtime's profiler counts for it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from edge_agent.pipeline import Tensors
from edge_agent.wire.manifest import StepSpec
from optimizer.errors import DiskFull, OptimizerError
from optimizer.fallback import MOST_EVALUATIONS, revert
from optimizer.judging import FAILURES, CandidateJudge
from optimizer.passes import find
from optimizer.passes.qdq import PRODUCTS, prepare
from optimizer.space import Point
from optimizer.task import Candidate

log = logging.getLogger("skerry.optimizer")

LABEL: Final = "+fallback"

_QUICK_EVALUATIONS: Final = 10
_PROFILED_RUNS: Final = 5
_NAMED: Final = 4
"""Layers that the note names."""


@dataclass(frozen=True)
class Derived:
    """A point with some layers in fp32, and what is to be said of it."""

    point: Point
    note: str


def derive(
    judge: CandidateJudge, point: Point, candidate: Candidate, more: Callable[[], bool]
) -> Derived | None:
    """The point with as few milliseconds in fp32 as its accuracy needs; `None` if there is none.

    Args:
        point: quantised, and not accurate enough; its recipe knows what to exclude.
        more: whether there is time for another evaluation.
    """
    source = judge.references[point.member].source
    if not _can_exclude(point.recipe):
        return None
    try:
        layers, costs = layers_of(source.onnx_path, source.calibration)
    except OptimizerError as error:
        log.warning("fallback.not_possible variant=%s cause=%s", candidate.name, error)
        return None

    def with_fp32(names: Sequence[str]) -> Point:
        nodes = [node for layer in layers if layer in names for node in layers[layer]]
        config = {**point.recipe.config, "exclude": nodes}
        label = f"{point.label or point.recipe.name}{LABEL}"
        recipe = StepSpec(name=point.recipe.name, config=config)
        return replace(point, recipe=recipe, label=label)

    def holds(names: frozenset[str]) -> bool:
        if not names:
            return False
        if not more():
            raise _TimeUp
        try:
            accuracy = judge.accuracy_of(with_fp32(tuple(names)))
        except DiskFull:
            raise
        except FAILURES as error:
            log.info("fallback.failed variant=%s cause=%s", candidate.name, error)
            return False
        return judge.verdicts.keeps_accuracy(accuracy)

    limit = _QUICK_EVALUATIONS if judge.task.quick else MOST_EVALUATIONS
    try:
        found = revert(tuple(layers), holds, costs, limit=limit)
    except _TimeUp:
        return None
    log.info(
        "fallback.done variant=%s layers=%s evaluations=%d",
        candidate.name, None if found.layers is None else len(found.layers), found.evaluations,
    )  # fmt: skip
    if not found.layers:
        return None
    named = ", ".join(found.layers[:_NAMED])
    if len(found.layers) > _NAMED:
        named += f" and {len(found.layers) - _NAMED} more"
    return Derived(
        with_fp32(found.layers),
        f"{len(found.layers)} of {len(layers)} layers are left in fp32 for accuracy, "
        f"{found.cost_ms:.3g} of {sum(costs.values()):.3g} ms: {named}",
    )


class _TimeUp(Exception):
    pass


def layers_of(path: Path, samples: Tensors) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """The layers of the network in `path` as quantisers see it, and what each takes in fp32.

    Args:
        samples: inputs of the network; the first row is run.

    Returns:
        Node names by layer, in the order of the graph, and milliseconds by layer.

    Raises:
        OptimizerError: the file is no network that can be run.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-layers-") as scratch:
        try:
            prepared = prepare(path, Path(scratch))
            nodes = [(node.name, node.op_type) for node in onnx.load(str(prepared)).graph.node]
            times = _profile(prepared, samples, Path(scratch))
        except Exception as error:  # the quantiser's and the runtime's own
            raise OptimizerError(
                (str(error).strip() or type(error).__name__).splitlines()[0]
            ) from error
    layers: dict[str, list[str]] = {}
    ahead: list[str] = []
    for name, operator in nodes:
        if operator in PRODUCTS:
            layers[name] = [*ahead, name]
            ahead = []
        elif layers:
            layers[next(reversed(layers))].append(name)
        else:
            ahead.append(name)
    grouped = {layer: tuple(names) for layer, names in layers.items()}
    costs = {layer: sum(times.get(name, 0.0) for name in names) for layer, names in grouped.items()}
    return grouped, costs


def _profile(path: Path, samples: Tensors, scratch: Path) -> Mapping[str, float]:
    """Milliseconds by node, the median of a few runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Fused nodes would not have the names that can be excluded.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {item.name: samples[item.name][:1] for item in session.get_inputs()}
    for _ in range(_PROFILED_RUNS):
        session.run(None, feeds)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            times.setdefault(name.removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
    return {name: float(np.median(each)) for name, each in times.items()}


def _can_exclude(step: StepSpec) -> bool:
    try:
        find(step.name, {**step.config, "exclude": []})
    except OptimizerError:
        return False
    return True
