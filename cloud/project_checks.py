"""What a project file refers to: functions, steps, files, profiles.

Functions and steps are looked up in the syntax tree of the project's files; nothing is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.pipeline import MODEL_STEP, StepConfigError, check_config, registered
from edge_agent.wire.manifest import StepSpec
from optimizer.config_file import Document, Place
from optimizer.derive import find as find_derivation
from optimizer.errors import OptimizerError, did_you_mean
from optimizer.profiles import load_profile

if TYPE_CHECKING:
    from cloud.project import Project

_DECORATORS = ("checker", "processor", "service")
_ROW_AXIS = -1


@dataclass(frozen=True)
class _Source:
    """What one Python file defines at its top level."""

    functions: frozenset[str] = frozenset()
    steps: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    """Registered steps with the keys that each takes; `None` where it takes any."""


def check_references(document: Document, project: Project, directory: Path) -> None:
    """Check everything that `project` names beside the project file.

    Raises:
        ConfigError: the first thing that does not exist or does not fit.
    """
    sources: dict[str, _Source] = {}
    files = {"code": project.code, "steps": project.steps, "recipe_code": project.recipe_code}
    for key, names in files.items():
        for index, name in enumerate(names):
            sources[name] = _read(document, (key, index), directory / name, name)
    _check_function(document, ("dataset", "load"), project.dataset.load, project.code, sources)
    _check_function(document, ("family", "build"), project.family.build, project.code, sources)
    _check_steps(document, project.pipeline, project.steps, sources)
    _check_derivations(document, project)
    _check_profiles(document, project)
    _check_labels(document, project)
    _check_image(document, project)
    for key, specs in (("inputs", project.inputs), ("outputs", project.outputs)):
        for index, spec in enumerate(specs):
            if not spec.shape or spec.shape[0] != _ROW_AXIS:
                raise document.error(
                    (key, index, "shape"), f"shape of '{spec.name}': the first axis is rows, -1"
                )


def _read(document: Document, place: Place, path: Path, name: str) -> _Source:
    if path.is_symlink() or not path.is_file():
        near = (
            sorted(item.name for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
        )
        raise document.error(place, f"no file '{name}'{did_you_mean(path.name, near)}")
    try:
        tree = ast.parse(path.read_bytes(), filename=name)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or str(error)
        raise document.error(place, f"{name}:{line}: {reason}") from error
    functions: set[str] = set()
    steps: dict[str, tuple[str, ...] | None] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            functions.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            functions.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            functions.update(t.id for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, ast.FunctionDef):
            steps.update({step: _keys(node) for step in _step_names(node)})
    return _Source(frozenset(functions), steps)


def _step_names(node: ast.FunctionDef) -> Iterable[str]:
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call) or not decorator.args:
            continue
        called = decorator.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        first = decorator.args[0]
        if name in _DECORATORS and isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def _keys(node: ast.FunctionDef) -> tuple[str, ...] | None:
    if node.args.kwarg is not None:
        return None
    arguments = [*node.args.posonlyargs, *node.args.args][1:] + node.args.kwonlyargs
    return tuple(argument.arg for argument in arguments)


def _check_function(
    document: Document,
    place: Place,
    reference: str,
    code: Sequence[str],
    sources: dict[str, _Source],
) -> None:
    module, function = reference.split(":")
    name = module.replace(".", "/") + ".py"
    if name not in sources or name not in code:
        modules = [path.removesuffix(".py").replace("/", ".") for path in code]
        raise document.error(
            place, f"module '{module}' is not listed under code{did_you_mean(module, modules)}"
        )
    known = sources[name].functions
    if function not in known:
        raise document.error(
            place, f"no function '{function}' in {name}{did_you_mean(function, known)}"
        )


def _check_steps(
    document: Document,
    pipeline: Sequence[StepSpec],
    files: Sequence[str],
    sources: dict[str, _Source],
) -> None:
    builtin = registered()
    own = {name: keys for file in files for name, keys in sources[file].steps.items()}
    if [step.name for step in pipeline].count(MODEL_STEP) != 1:
        raise document.error(("pipeline",), "pipeline: the step 'model' must stand there once")
    for index, step in enumerate(pipeline):
        place = ("pipeline", index)
        if step.name == MODEL_STEP:
            continue
        if step.name in own:
            _check_keys(document, place, step, own[step.name])
        elif step.name in builtin:
            try:
                check_config(step.name, builtin[step.name].function, step.config)
            except StepConfigError as error:
                raise document.error(place, str(error)) from error
        else:
            known = {MODEL_STEP, *builtin, *own}
            raise document.error(place, f"no step '{step.name}'{did_you_mean(step.name, known)}")


def _check_keys(
    document: Document, place: Place, step: StepSpec, keys: tuple[str, ...] | None
) -> None:
    for key in step.config if keys is not None else ():
        if key not in (keys or ()):
            raise document.error(
                (*place, step.name, key),
                f"step '{step.name}' has no key '{key}'{did_you_mean(key, keys or ())}",
            )


def _check_derivations(document: Document, project: Project) -> None:
    known = [member.name for member in project.family.all()]
    for index, step in enumerate(project.derive):
        try:
            config = find_derivation(step.name, step.config).config
        except OptimizerError as error:
            raise document.error(("derive", index), str(error)) from error
        for member in config.members:
            if member not in known:
                raise document.error(
                    ("derive", index), f"no member '{member}'{did_you_mean(member, known)}"
                )


def _check_profiles(document: Document, project: Project) -> None:
    for profile, budget in project.profiles.items():
        place = ("profiles", profile)
        try:
            load_profile(profile)
        except OptimizerError as error:
            raise document.error(place, str(error)) from error
        for label in budget.min_recall:
            _check_label(document, (*place, "min_recall", label), label, project.labels)


def _check_labels(document: Document, project: Project) -> None:
    if len(set(project.labels)) != len(project.labels):
        twice = next(label for label in project.labels if project.labels.count(label) > 1)
        raise document.error(("labels",), f"labels: '{twice}' is listed twice")
    for label in project.gates.recall_floors:
        _check_label(document, ("gates", "recall_floors", label), label, project.labels)
    if "metric" in project.gates.model_fields_set:
        raise document.error(("gates", "metric"), "gates.metric: the metric is metrics.primary")


def _check_image(document: Document, project: Project) -> None:
    """The image must fill the one input, of a type and rank that decoded pixels have."""
    image = project.image
    if image is None:
        return
    specs = {spec.name: spec for spec in project.inputs}
    spec = specs.get(image.input)
    if spec is None:
        hint = did_you_mean(image.input, list(specs))
        raise document.error(("image", "input"), f"no input '{image.input}'{hint}")
    if len(specs) > 1:
        raise document.error(("image",), "image: a model with several inputs takes tensors only")
    rank = 3 if image.mode == "L" else 4
    if len(spec.shape) != rank or spec.datatype not in ("UINT8", "FP32"):
        shape = "[-1, height, width]" if image.mode == "L" else "[-1, height, width, 3]"
        raise document.error(
            ("image", "input"),
            f"image in mode {image.mode} fills an input of UINT8 or FP32 {shape}, "
            f"'{spec.name}' is {spec.datatype} {list(spec.shape)}",
        )


def _check_label(document: Document, place: Place, label: str, labels: Sequence[str]) -> None:
    if label not in labels:
        raise document.error(place, f"no label '{label}'{did_you_mean(label, labels)}")
