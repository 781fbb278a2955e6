"""Reads a YAML file into a pydantic model, and blames a line when it is wrong.

Rules:
    * Every error is one line: `skerry.yaml:12: unknown key 'budgt'; did you mean 'budget'?`.
    * No key is ever ignored: also not in a wire model, which itself would keep unknown fields.
    * Duplicate keys, tags, and documents beyond the bounds below are refused.
    * Scalars follow YAML 1.2's core schema: `no`, `on` and `2024-01-01` are text, `1e-3` a number.

It does not check what a value refers to.  A caller that does (a function in a module, say) reads a
`Document` first and raises `document.error(("family", "build"), "…")`.

    >>> document = Document.read(Path("skerry.yaml"))
    >>> project = document.validate(ProjectFile)
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optimizer.errors import ConfigError, did_you_mean

MAX_FILE_BYTES: Final = 1_000_000
MAX_NODES: Final = 50_000
MAX_DEPTH: Final = 40

Scalar = str | int | float | bool | None
Value = Scalar | list["Value"] | dict[str, "Value"]
Place = tuple[str | int, ...]
"""Keys and indices that lead to a value from the top of the document."""

M = TypeVar("M", bound=BaseModel)


def load_yaml(path: Path, model: type[M]) -> M:
    """The file as a validated `model`.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or does not fit the model.
    """
    return Document.read(path).validate(model)


@dataclass(frozen=True)
class Document:
    """A parsed file that remembers where each value stands."""

    path: Path
    value: Value
    lines: Mapping[Place, int]

    @classmethod
    def read(cls, path: Path) -> Document:
        """Parse the file at `path`.

        Raises:
            ConfigError: the file is missing, too large or not YAML as described above.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(path, 1, f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(path, 1, f"{len(data)} bytes exceed the limit of {MAX_FILE_BYTES}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise ConfigError(path, line, "not UTF-8 text") from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path) -> Document:
        """Parse `text`; `path` only names it in errors.

        Raises:
            ConfigError: not YAML, a duplicate key, a tag, or larger than the bounds.
        """
        try:
            _bound_depth(text, path)
            root = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(path, line, f"not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise ConfigError(path, 1, f"not valid YAML: {error}") from error
        reader = _Reader(path)
        value: Value = {} if root is None else reader.build(root, ())
        return cls(path, value, reader.lines)

    def line(self, place: Place) -> int:
        """Line of the value at `place`, or of the nearest parent that the file has."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def error(self, place: Place, message: str) -> ConfigError:
        """An error that names the line of `place`; the caller raises it."""
        return ConfigError(self.path, self.line(place), message)

    def validate(self, model: type[M]) -> M:
        """The document as a `model`.

        Raises:
            ConfigError: the first thing, by line, that does not fit.
        """
        if not isinstance(self.value, dict):
            raise self.error((), f"expected keys and values, not {_kind(self.value)}")
        try:
            result = model.model_validate(self.value)
        except ValidationError as error:
            problems = [self._explain(model, detail) for detail in error.errors(include_url=False)]
            raise min(problems, key=lambda problem: problem.line) from error
        self._refuse_ignored(result, self.value, ())
        return result

    def _explain(self, model: type[BaseModel], detail: ErrorDetails) -> ConfigError:
        place = self._existing(detail["loc"])
        kind, last = detail["type"], detail["loc"][-1] if detail["loc"] else ""
        name = _dotted(place)
        if kind == "extra_forbidden":
            known = _keys(model, place[:-1])
            return self.error(place, f"unknown key '{last}'{did_you_mean(str(last), known)}")
        if kind == "missing":
            where = f" in {name}" if name else ""
            return self.error(place, f"missing key '{last}'{where}")
        value = detail["input"]
        if kind in ("literal_error", "enum"):
            expected = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
            return self.error(
                place, f"{name}: '{value}' is not known{did_you_mean(str(value), expected)}"
            )
        message = detail["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if kind == "string_type" and isinstance(value, int | float):
            message += f'; put it in quotes: "{_yaml_scalar(value)}"'
        elif isinstance(value, str | int | float | bool) or value is None:
            message += f", not {_short(value)}"
        return self.error(place, f"{name}: {message}" if name else message)

    def _existing(self, loc: Sequence[str | int]) -> Place:
        """`loc` less the parts that pydantic adds (names of union members) or that are absent."""
        place: Place = ()
        value: Value = self.value
        for part in loc:
            if isinstance(value, dict) and part in value:
                value = value[str(part)]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                continue
            place = (*place, part)
        return place

    def _refuse_ignored(self, parsed: object, value: Value, place: Place) -> None:
        if isinstance(parsed, BaseModel) and isinstance(value, dict):
            for key in parsed.model_extra or {}:
                known = _field_names(type(parsed))
                raise self.error((*place, key), f"unknown key '{key}'{did_you_mean(key, known)}")
            for name in type(parsed).model_fields:
                if name in value:
                    self._refuse_ignored(getattr(parsed, name), value[name], (*place, name))
        elif isinstance(parsed, Mapping) and isinstance(value, dict):
            for key, item in value.items():
                if key in parsed:
                    self._refuse_ignored(parsed[key], item, (*place, key))
        elif isinstance(parsed, list | tuple) and isinstance(value, list):
            for index, (one, item) in enumerate(zip(parsed, value, strict=False)):
                self._refuse_ignored(one, item, (*place, index))
        elif isinstance(value, bool) and isinstance(parsed, int | float) and parsed is not value:
            raise self.error(place, f"{_dotted(place)}: expected a number, not {_short(value)}")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema. Source: yaml.org/spec/1.2.2/#103."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", [*"~nN", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    ("int", r"^[-+]?[0-9]+$", [*"-+0123456789"]),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        [*"-+.0123456789"],
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _bound_depth(text: str, path: Path) -> None:
    """Refuse what would exhaust the composer, which recurses; the parser does not."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigError(path, line, "nested too deeply")


class _Reader:
    """Turns nodes into plain values and notes their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Place, int] = {}
        self._nodes = 0

    def build(self, node: yaml.Node, place: Place) -> Value:
        # Aliases make a graph of the tree: counting visits bounds what they can expand to.
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > MAX_NODES or len(place) > MAX_DEPTH:  # aliases can nest, too
            raise ConfigError(self.path, line, "the document is too large or nested too deeply")
        self.lines.setdefault(place, line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*place, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, line)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> Value:
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(self.path, line, "a key must be plain text")
            key = str(key_node.value)
            if key in result:
                before = self.lines[(*place, key)]
                raise ConfigError(
                    self.path, line, f"key '{key}' was already given in line {before}"
                )
            self.lines[(*place, key)] = line
            result[key] = self.build(value_node, (*place, key))
        return result

    def _scalar(self, node: yaml.Node, line: int) -> Scalar:
        text = str(node.value)
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
            case tag:
                raise ConfigError(self.path, line, f"tag '{tag}' is not allowed here")


def _keys(annotation: Any, place: Place) -> set[str]:
    """Names of the keys that a value of this type may have at `place`."""
    models = _models(annotation)
    if not place:
        return {name for model in models for name in _field_names(model)}
    found: set[str] = set()
    for model in models:
        if (field := model.model_fields.get(str(place[0]))) is not None:
            found |= _keys(field.annotation, place[1:])
    for item in _items(annotation):
        found |= _keys(item, place[1:])
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [model for member in get_args(annotation) for model in _models(member)]
    return []


def _items(annotation: Any) -> list[Any]:
    """Element types of the containers that `annotation` can be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _items(arguments[0])
    if origin in (Union, types.UnionType):
        return [item for member in arguments for item in _items(member)]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [arguments[1]] if len(arguments) == 2 else []
    if isinstance(origin, type) and issubclass(origin, list | tuple):
        return [item for item in arguments if item is not Ellipsis]
    return []


def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _dotted(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _kind(value: Value) -> str:
    return "a list" if isinstance(value, list) else _short(value)


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    text = _yaml_scalar(value) if isinstance(value, bool | int | float) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _yaml_scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
