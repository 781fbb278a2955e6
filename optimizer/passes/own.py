"""Recipes that a project brings along: Python files that register them when they are imported.

    @recipe("mine", runtimes=("onnxruntime",), precision="fp32", config=MyConfig)
    def mine(context: PassContext, config: MyConfig) -> Artifact: ...

A project's code runs in child processes only; whoever calls this is one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from optimizer.errors import ConfigError
from optimizer.passes.registry import forget_own, recipes, registering

_PREFIX: Final = "skerry_recipes_"


def register_files(directory: Path, names: Sequence[str]) -> list[str]:
    """Import the files `names` of `directory`, which stays on the import path.

    A process works for one project: recipes of another, or of earlier files, are forgotten.

    Returns:
        Names of all recipes there are now.

    Raises:
        ConfigError: a file cannot be imported, takes a name that is taken, or registers nothing.
    """
    forget_own()
    directory = directory.resolve()
    if names and str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    for name in names:
        _import(directory, name, digest_of(directory, names))
    return recipes()


def digest_of(directory: Path, names: Sequence[str]) -> str:
    """SHA-256 over the files, by which results of their recipes are kept.

    Raises:
        ConfigError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in names:
        try:
            data = (directory / name).read_bytes()
        except OSError as error:
            raise ConfigError(directory / name, 1, error.strerror or str(error)) from error
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _import(directory: Path, name: str, digest: str) -> None:
    path = directory / name
    module_name = _PREFIX + name.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(path, 1, "not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    sys.modules[module_name] = module  # where pydantic looks up the types of annotations
    try:
        with registering(digest) as found:
            spec.loader.exec_module(module)
    except Exception as error:  # it is somebody else's code
        del sys.modules[module_name]
        raise ConfigError(path, _line(error, path), _reason(error)) from error
    if not found:
        raise ConfigError(path, 1, "it registers no recipe")


def _line(error: Exception, path: Path) -> int:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 1 for f in reversed(frames) if f.filename == str(path)), 1)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
