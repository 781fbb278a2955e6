"""Traces: what each step made of one batch, and how a batch is made of single items.

A trace of a batch that was not answered says where and why, and holds the steps before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_agent.pipeline import (
    Array,
    InputError,
    Pipeline,
    PipelineError,
    Rejected,
    Request,
    Tensors,
)

Steps: TypeAlias = list[tuple[str, Tensors]]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a batch was not answered.

    Attributes:
        kind: "refused" by a checker, or "failed" in a step.
        why: one line; of a refusal it begins with the reason's slug.
        index: position of the step among the pipeline's; None where the other side does not say.
    """

    kind: Literal["refused", "failed"]
    why: str
    index: int | None = None

    @property
    def reason(self) -> str:
        """What two refusals must share; details may name a batch's own values."""
        return self.why.partition(":")[0] if self.kind == "refused" else self.kind


@dataclass(frozen=True, slots=True)
class Trace:
    """What became of one batch.

    Attributes:
        outputs: the answer; empty if there was none.
        steps: after each step its name and the tensors then; a checker's dict is empty.
        shows_steps: whether `steps` is all there was, or the side only tells its answer.
        stop: set if there was no answer.
    """

    outputs: Tensors = field(default_factory=dict)
    steps: Steps = field(default_factory=list)
    shows_steps: bool = True
    stop: Stop | None = None


Runner: TypeAlias = Callable[[Tensors], Trace]
"""Feeds one batch to one side."""


def run_here(pipeline: Pipeline) -> Runner:
    """The side that runs in this process.

    The runner raises `InputError` for inputs that do not fit.
    """

    def run(tensors: Tensors) -> Trace:
        request = Request(tensors, debug=True)
        try:
            return Trace(pipeline.process(request), request.steps)
        except InputError:
            raise
        except Rejected as error:
            stop = Stop("refused", str(error), len(request.steps))
        except PipelineError as error:
            stop = Stop("failed", str(error), len(request.steps))
        return Trace({}, request.steps, stop=stop)

    return run


def take(tensors: Tensors, rows: NDArray[np.intp]) -> Tensors:
    """A batch of these rows, each array in one piece."""
    return {name: np.ascontiguousarray(array[rows]) for name, array in tensors.items()}


def batches_of(items: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """All of `items` in batches of exactly `size`; the last is filled up from the first."""
    if not len(items):
        return []
    count = -(-len(items) // size)
    return list(np.resize(items, count * size).reshape(count, size))


def join(traces: Sequence[Trace]) -> Trace:
    """Traces of single items as the one that a batch of them should have.

    An item that was not answered speaks for all.  A tensor without a batch axis is taken as the
    first item's; if it depends on the item, or on the size of the batch, the comparison finds out.
    """
    first = next((trace for trace in traces if trace.stop is not None), traces[0])
    if len(traces) == 1 or first.stop is not None:
        return first
    steps = [
        (name, _joined(tensors, [trace.steps[index][1] for trace in traces]))
        for index, (name, tensors) in enumerate(first.steps)
    ]
    return Trace(_joined(first.outputs, [trace.outputs for trace in traces]), steps)


def _joined(names: Tensors, parts: Sequence[Tensors]) -> Tensors:
    return {name: _concatenated([part.get(name) for part in parts]) for name in names}


def _concatenated(parts: Sequence[Array | None]) -> Array:
    arrays = [part for part in parts if part is not None]
    shapes = {array.shape for array in arrays}
    shape = shapes.pop()
    if shapes or len(arrays) < len(parts) or not shape or shape[0] != 1:
        return arrays[0]
    return np.concatenate(arrays)
