"""The pipeline: steps in the manifest's order around one network.

What is measured, evaluated, self-tested and served is this class, so that all four agree.

Rules:
    * Exactly one step is "model"; services stand behind it.
    * Functions are resolved when the pipeline is made and never looked up again.
    * `run`, `process` and `answer` may be called from several threads at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_agent.pipeline.code import Code, code_of, execute
from edge_agent.pipeline.errors import (
    InputError,
    Rejected,
    StepConfigError,
    StepFailed,
)
from edge_agent.pipeline.interface import Interface, Request, Steps, spec_dtype
from edge_agent.pipeline.steps import MODEL_STEP, BoundStep, Step, bind, bind_model, registered
from edge_agent.runtime import Provenance, Session, UnfitInput, open_session
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import Manifest, StepSpec, TensorSpec

log = logging.getLogger("skerry.pipeline")


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one request.

    Attributes:
        tensors: the outputs that the interface names, in its order.
        steps: after each step its name and the tensors then, if a trace was asked for; a checker
            changes none and has an empty dict.
    """

    tensors: Tensors
    steps: Steps = field(default_factory=list)


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
        code: Code | None = None,
    ) -> None:
        """Resolve `steps`.  The pipeline owns `session` and `code` from here on.

        Args:
            scope: where names are looked up before the built-ins.
            registry: looked up instead of `scope` and `code`, if given.
            code: step files of its own, looked up instead of `scope`.

        Raises:
            UnknownStep: no step has such a name.
            StepConfigError: a config does not fit, or the order is impossible.
        """
        self._session = session
        self._closed = False
        with ExitStack() as undo:
            if code is None:
                code = code_of(scope)
                if code is not None:
                    undo.callback(code.release)
            own = {} if code is None else code.steps
            bound = _bound(steps, session, registered() | own if registry is None else registry)
            undo.pop_all()
        self._code = code
        self._interface = Interface(inputs)
        self._outputs = tuple(outputs)
        self._answers = tuple(
            (spec.name, spec_dtype(spec), len(spec.shape), spec.shape[:1] == (-1,))
            for spec in outputs
        )
        self._first_input = inputs[0].name
        self._calls = tuple((step.name, step.call, step.kind != "checker") for step in bound)
        # a session leaves the mapping alone, a project's step may not
        self._copies = bound[0].kind != "model"

    @classmethod
    def open(cls, directory: Path, manifest: Manifest) -> Pipeline:
        """Load the code and the network of an unpacked bundle.

        Raises:
            StepError: the bundle's code or steps are at fault.
            SessionError: the network cannot be opened here.
        """
        with ExitStack() as undo:
            code = None
            if manifest.code:
                code = execute([directory / name for name in manifest.code], manifest.model)
                undo.callback(code.release)
            session = open_session(directory / manifest.network.file, manifest.network)
            undo.callback(session.close)
            pipeline = cls(manifest.pipeline, session, manifest.inputs, manifest.outputs, code=code)
            undo.pop_all()
            return pipeline

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._interface.specs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def provenance(self) -> Provenance:
        return self._session.provenance

    @property
    def instances(self) -> int:
        """Runs that really proceed at the same time."""
        return self._session.instances

    def validate(self, tensors: Mapping[str, Array]) -> int:
        """Check that `tensors` are exactly the pipeline's inputs.

        Returns:
            The batch size, which all tensors share.

        Raises:
            InputError: a tensor is missing, unknown, or has another dtype or shape.
        """
        return self._interface.validate(tensors)

    def run(self, tensors: Mapping[str, Array], *, trace: bool = False) -> Result:
        """Validate and answer one request.

        Raises:
            InputError: the tensors do not fit the interface.
            Rejected: a checker refused them.
            StepFailed: a step raised or returned no answer.
        """
        request = Request(dict(tensors), debug=trace)
        return Result(self.process(request), request.steps)

    def process(self, request: Request) -> Tensors:
        """Validate and answer `request`, which keeps every step's output if it is for debugging.

        Its own tensors stay as they are.

        Raises:
            InputError: the tensors do not fit the interface.
            Rejected: a checker refused them.
            StepFailed: a step raised or returned no answer.
        """
        request.steps = []
        self._interface.validate(request.tensors)
        return self.answer(request.tensors, request.steps if request.debug else None)

    def answer(self, tensors: Tensors, steps: Steps | None = None) -> Tensors:
        """Answer tensors that are known to be valid: the path of a server that checked them.

        Args:
            tensors: as `validate` accepts them; neither the dict nor its arrays are changed.
            steps: each step's output is appended to it.

        Returns:
            The outputs that the interface names, in its order.

        Raises:
            InputError: a value is none that the network's runtime can take.
            Rejected: a checker refused them.
            StepFailed: a step raised or returned no answer, or one for another number of items.
        """
        items = tensors[self._first_input].shape[0]
        current = dict(tensors) if self._copies else tensors
        name = MODEL_STEP
        try:
            for name, call, replaces in self._calls:
                returned = call(current)
                if replaces:
                    if not isinstance(returned, dict):
                        raise StepFailed(name, f"returned {type(returned).__name__}, not tensors")
                    current = returned
                if steps is not None:
                    steps.append((name, dict(current) if replaces else {}))
        except (Rejected, StepFailed):
            raise
        except UnfitInput as error:
            raise InputError(str(error)) from error
        except (Exception, SystemExit) as error:  # a step does not end whoever asks
            raise StepFailed(name, f"{type(error).__name__}: {error}") from error
        answer: Tensors = {}
        for output, dtype, rank, per_item in self._answers:
            array = current.get(output)
            try:
                shape = array.shape  # type: ignore[union-attr]  # a step may have left anything
                # runtimes hand out numpy's own dtype objects, so that identity mostly settles it
                fits = array.dtype is dtype or array.dtype == dtype  # type: ignore[union-attr]
            except AttributeError:
                fits = False
            if not fits or len(shape) != rank or (per_item and shape[0] != items):
                raise self._no_answer(output, items, current)
            answer[output] = array  # type: ignore[assignment]
        return answer

    def close(self) -> None:
        """Release the network and the code.  Idempotent."""
        if not self._closed:
            self._closed = True
            self._session.close()
            if self._code is not None:
                self._code.release()

    def _no_answer(self, output: str, items: int, tensors: Tensors) -> StepFailed:
        """What is wrong with `output` after the last step."""
        last = self._calls[-1][0]
        if output not in tensors:
            have = ", ".join(tensors) or "nothing"
            return StepFailed(last, f"output {output!r} is missing; there is {have}")
        spec = next(spec for spec in self._outputs if spec.name == output)
        array = tensors[output]
        if not isinstance(array, np.ndarray | np.generic):
            return StepFailed(last, f"output {output!r} is {type(array).__name__}, no array")
        if array.dtype != spec_dtype(spec):
            return StepFailed(
                last, f"output {output!r} is {array.dtype}, the manifest says {spec.datatype}"
            )
        shape = list(array.shape)
        if len(shape) != len(spec.shape):
            return StepFailed(
                last, f"output {output!r} has shape {shape}, the manifest says {list(spec.shape)}"
            )
        return StepFailed(last, f"output {output!r} has shape {shape} for a batch of {items}")


def _bound(
    steps: Sequence[StepSpec], session: Session, known: Mapping[str, Step]
) -> tuple[BoundStep, ...]:
    bound = tuple(
        bind_model(spec, session.run) if spec.name == MODEL_STEP else bind(spec, known)
        for spec in steps
    )
    _check_order(bound)
    return bound


def _check_order(steps: Sequence[BoundStep]) -> None:
    positions = [index for index, step in enumerate(steps) if step.kind == "model"]
    if len(positions) != 1:
        raise StepConfigError(MODEL_STEP, f"must stand once among the steps, not {len(positions)}×")
    for step in steps[: positions[0]]:
        if step.kind == "service":
            raise StepConfigError(step.name, "a service stands behind the model, not before it")
