"""Steps and their registry: a function, the name it is found by, and what kind it is.

    @processor("digits.scale")
    def scale(tensors: Tensors, *, factor: float = 16.0) -> Tensors: ...

Rules:
    * A name belongs to a scope.  Built-ins and plainly imported steps are in the scope "", steps
      of `load_code` in their own; a lookup tries its own scope first, so two versions of one
      project can be loaded at a time.
    * `load_code` replaces a whole scope at once.  A pipeline resolves its functions when it is
      made, so the one that serves keeps the functions it was made with.
    * A step never changes the arrays it is given; they may be views of a request's bytes.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

from pydantic import JsonValue, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from edge_agent.pipeline.errors import DuplicateStep, StepConfigError, UnknownStep, nearest
from edge_agent.runtime.session import Tensors
from edge_agent.wire.manifest import StepSpec

MODEL_STEP: Final = "model"
"""The name of the network among the steps; it is never registered."""

Kind = Literal["checker", "processor", "service"]
StepFunction: TypeAlias = Callable[..., Tensors | None]
F = TypeVar("F", bound=StepFunction)
BoundFunction: TypeAlias = Callable[[Tensors], Tensors | None]


@dataclass(frozen=True, slots=True)
class Step:
    """One registered step."""

    name: str
    kind: Kind
    function: StepFunction


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A step with its config, ready to be called."""

    name: str
    kind: Literal["checker", "processor", "service", "model"]
    call: BoundFunction


class Scope:
    """The steps of one scope while they are being registered.

    Args:
        shared: whether plain imports register here.  A file may then be imported under a second
            name, so the newest registration wins; built-ins stay as they are.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.steps: dict[str, Step] = {}
        self._shared = shared

    def _protects(self, present: Step, new: Step) -> bool:
        if not self._shared:
            return True
        builtin = present.function.__module__ in _BUILTIN_MODULES
        return builtin and present.function.__module__ != new.function.__module__

    def add(self, step: Step) -> None:
        if step.name == MODEL_STEP:
            raise DuplicateStep(f"step name {MODEL_STEP!r} is the network's own")
        present = self.steps.get(step.name)
        if present is not None and self._protects(present, step):
            raise DuplicateStep(f"step {step.name!r} is registered twice")
        self.steps[step.name] = step


_lock = threading.Lock()
_BUILTIN_MODULES: Final = frozenset(
    f"edge_agent.pipeline.{module}"
    for module in ("checkers", "processors", "image_steps", "services")
)
_builtins: Final = Scope(shared=True)
_scopes: Final[dict[str, Scope]] = {}
_current: Final[ContextVar[Scope]] = ContextVar("skerry_step_scope", default=_builtins)


def checker(name: str) -> Callable[[F], F]:
    """Register a checker: returns nothing, or raises `Rejected`."""
    return _register(name, "checker")


def processor(name: str) -> Callable[[F], F]:
    """Register a processor: tensors in, the tensors that replace them out."""
    return _register(name, "processor")


def service(name: str) -> Callable[[F], F]:
    """Register a service: the network's outputs in, the answer out."""
    return _register(name, "service")


def registered(scope: str = "") -> dict[str, Step]:
    """All steps visible from `scope`, by name."""
    with _lock:
        own = _scopes[scope].steps if scope in _scopes else {}
        return {**_builtins.steps, **own}


def publish(scope: str, steps: Scope) -> None:
    """Make `steps` the whole content of `scope`."""
    with _lock:
        _scopes[scope] = steps


@contextmanager
def registering(scope: Scope) -> Iterator[Scope]:
    """Within the block, decorators register into `scope`."""
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)


def bind(spec: StepSpec, steps: Mapping[str, Step]) -> BoundStep:
    """Find the step that `spec` names and fix its config.

    Raises:
        UnknownStep: no such name.
        StepConfigError: a key is unknown, missing, or of the wrong type.
    """
    step = steps.get(spec.name)
    if step is None:
        raise UnknownStep(spec.name, [*steps, MODEL_STEP])
    arguments = check_config(spec.name, step.function, spec.config)
    function = step.function

    def call(tensors: Tensors) -> Tensors | None:
        return function(tensors, **arguments)

    return BoundStep(step.name, step.kind, call)


def bind_model(spec: StepSpec, run: Callable[[Tensors], Tensors]) -> BoundStep:
    """The network as a step; its config may name tensors to carry past it.

    Raises:
        StepConfigError: a key is unknown or of the wrong type.
    """

    def model(tensors: Tensors, *, carry: tuple[str, ...] = ()) -> Tensors:
        outputs = run(tensors)
        return {**{name: tensors[name] for name in carry}, **outputs}

    arguments = check_config(spec.name, model, spec.config)
    if not arguments.get("carry"):
        return BoundStep(MODEL_STEP, "model", run)
    return BoundStep(MODEL_STEP, "model", lambda tensors: model(tensors, **arguments))


def check_config(
    name: str, function: Callable[..., object], config: Mapping[str, JsonValue]
) -> dict[str, Any]:
    """Check `config` against the keyword arguments of `function`, by their annotations.

    The first parameter is what the function works on and takes no config.

    Raises:
        StepConfigError: a key is unknown, missing, or of the wrong type.
    """
    parameters = list(_signature(function).parameters.values())[1:]
    known = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    for key in config:
        if key not in known:
            raise StepConfigError(name, f"unknown key {key!r}{nearest(key, known)}")
    arguments: dict[str, Any] = {}
    for key, parameter in known.items():
        if key in config:
            arguments[key] = _convert(name, key, parameter.annotation, config[key])
        elif parameter.default is parameter.empty:
            raise StepConfigError(name, f"key {key!r} is missing")
    return arguments


def _register(name: str, kind: Kind) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        _current.get().add(Step(name, kind, function))
        return function

    return decorate


def _signature(function: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, TypeError, SyntaxError):  # an annotation that only a type checker can see
        return inspect.signature(function)


def _convert(step: str, key: str, annotation: Any, value: JsonValue) -> object:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    try:
        adapter: TypeAdapter[object] = TypeAdapter(annotation)
    except PydanticSchemaGenerationError:
        return value
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise StepConfigError(step, f"key {key!r}: {problem}") from None
