"""Importing a project's functions, inside of a child process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from cloud.training.errors import BadFunction


def import_function(project_dir: Path, reference: str) -> Callable[..., object]:
    """The function `module:name` of the project in `project_dir`.

    The directory stays on the import path, so that the project's modules can import each other.

    Raises:
        BadFunction: the module came from elsewhere, or has no such function.
    """
    module_name, name = reference.split(":")
    directory = str(project_dir)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    sys.dont_write_bytecode = True
    module = importlib.import_module(module_name)
    if not Path(module.__file__ or "").is_relative_to(project_dir):
        raise BadFunction(
            f"module '{module_name}' is {module.__file__}, not the project's: choose another name"
        )
    function = getattr(module, name, None)
    if not callable(function):
        raise BadFunction(f"{module_name} has no function '{name}'")
    checked: Callable[..., object] = function
    return checked
