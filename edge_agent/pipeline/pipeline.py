"""The pipeline: steps in the manifest's order around one network.

What is measured, evaluated, self-tested and served is this class, so that all four agree.

Rules:
    * Exactly one step is "model"; services stand behind it.
    * Functions are resolved when the pipeline is made and never looked up again.
    * `run` may be called from several threads at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.pipeline.code import execute
from edge_agent.pipeline.errors import (
    InputError,
    PipelineError,
    Rejected,
    StepConfigError,
    StepFailed,
)
from edge_agent.pipeline.interface import validate
from edge_agent.pipeline.steps import MODEL_STEP, BoundStep, Step, bind, registered
from edge_agent.runtime import Provenance, Session, numpy_dtype, open_session
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Manifest, StepSpec, TensorSpec

log = logging.getLogger("skerry.pipeline")


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one request.

    Attributes:
        tensors: the outputs that the interface names, in its order.
        steps: after each step its name and the tensors then, if a trace was asked for.
    """

    tensors: Tensors
    steps: list[tuple[str, Tensors]] = field(default_factory=list)


class Pipeline:
    """See the module."""

    def __init__(
        self,
        steps: Sequence[StepSpec],
        session: Session,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        scope: str = "",
        registry: Mapping[str, Step] | None = None,
    ) -> None:
        """Resolve `steps`.  The pipeline owns `session` from here on.

        Args:
            scope: where names are looked up before the built-ins.
            registry: looked up instead of `scope`, if given.

        Raises:
            UnknownStep: no step has such a name.
            StepConfigError: a config does not fit, or the order is impossible.
        """
        known = registered(scope) if registry is None else registry
        self._session = session
        self._inputs = tuple(inputs)
        self._outputs = tuple((spec, _interface_dtype(spec)) for spec in outputs)
        for spec in inputs:
            _interface_dtype(spec)
        self._steps = tuple(
            BoundStep(MODEL_STEP, "model", session.run)
            if spec.name == MODEL_STEP
            else bind(spec, known)
            for spec in steps
        )
        _check_order(self._steps)
        self._closed = False

    @classmethod
    def open(cls, directory: Path, manifest: Manifest) -> Pipeline:
        """Load the code and the network of an unpacked bundle.

        Raises:
            StepError: the bundle's code or steps are at fault.
            SessionError: the network cannot be opened here.
        """
        registry = registered()
        if manifest.code:
            scope = execute([directory / name for name in manifest.code], manifest.model)
            registry |= scope.steps
        session = open_session(directory / manifest.network.file, manifest.network)
        try:
            return cls(
                manifest.pipeline, session, manifest.inputs, manifest.outputs, registry=registry
            )
        except PipelineError:
            session.close()
            raise

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec, _ in self._outputs)

    @property
    def provenance(self) -> Provenance:
        return self._session.provenance

    def run(self, tensors: Mapping[str, Array], *, trace: bool = False) -> Result:
        """Answer one request.

        Raises:
            InputError: the tensors do not fit the interface.
            Rejected: a checker refused them.
            StepFailed: a step raised or returned no answer.
        """
        validate(tensors, self._inputs)
        current: Tensors = dict(tensors)
        seen: list[tuple[str, Tensors]] = []
        for step in self._steps:
            try:
                returned = step.call(current)
            except Rejected:
                raise
            except Exception as error:
                raise StepFailed(step.name, f"{type(error).__name__}: {error}") from error
            if step.kind == "checker":
                continue
            if not isinstance(returned, dict):
                raise StepFailed(step.name, f"returned {type(returned).__name__}, not tensors")
            current = returned
            if trace:
                seen.append((step.name, dict(current)))
        return Result(self._answer(current), seen)

    def close(self) -> None:
        """Release the network.  Idempotent."""
        if not self._closed:
            self._closed = True
            self._session.close()

    def _answer(self, tensors: Tensors) -> Tensors:
        answer: Tensors = {}
        last = self._steps[-1].name
        for spec, dtype in self._outputs:
            array = tensors.get(spec.name)
            if array is None:
                have = ", ".join(tensors) or "nothing"
                raise StepFailed(last, f"output {spec.name!r} is missing; there is {have}")
            if array.dtype != dtype:
                raise StepFailed(
                    last,
                    f"output {spec.name!r} is {array.dtype}, the manifest says {spec.datatype}",
                )
            answer[spec.name] = array
        return answer


def _check_order(steps: Sequence[BoundStep]) -> None:
    positions = [index for index, step in enumerate(steps) if step.kind == "model"]
    if len(positions) != 1:
        raise StepConfigError(MODEL_STEP, f"must stand once among the steps, not {len(positions)}×")
    for step in steps[: positions[0]]:
        if step.kind == "service":
            raise StepConfigError(step.name, "a service stands behind the model, not before it")


def _interface_dtype(spec: TensorSpec) -> object:
    try:
        return numpy_dtype(spec.datatype)
    except ValueError as error:
        raise InputError(f"tensor {spec.name!r}: {error}") from error
