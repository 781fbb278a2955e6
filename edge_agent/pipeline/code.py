"""Loads the Python files in which a project registers its own steps.

The files are executed from their source, in order, as the modules of a throw-away package: a later
file may import an earlier one with a relative import.  No bytecode is written beside them, because
a slot holds exactly the files of its bundle.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
import threading
import traceback
import types
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent.pipeline.errors import CodeNotLoadable, StepError
from edge_agent.pipeline.steps import Scope, publish, registering

log = logging.getLogger("skerry.pipeline")

_KEPT_GENERATIONS: Final = 2
"""Packages of one scope that stay importable: the one that serves and the one before it."""

_counter: Final = itertools.count(1)
_packages: Final[defaultdict[str, deque[str]]] = defaultdict(deque)
_lock = threading.Lock()


def load_code(paths: Sequence[Path], scope: str) -> None:
    """Execute step files; what they register becomes the whole content of `scope`.

    Raises:
        CodeNotLoadable: a file cannot be read, compiled or executed; `scope` stays as it was.
    """
    execute(paths, scope)


def execute(paths: Sequence[Path], scope: str) -> Scope:
    """As `load_code`, and returns what was registered."""
    digest = hashlib.sha256(scope.encode()).hexdigest()[:8]
    package = types.ModuleType(f"_skerry_steps_{digest}_{next(_counter)}")
    package.__path__ = []
    sys.modules[package.__name__] = package
    steps = Scope()
    try:
        with registering(steps):
            for path in paths:
                _execute_file(package, path)
    except BaseException:
        _forget(package.__name__)
        raise
    publish(scope, steps)
    with _lock:
        generations = _packages[scope]
        generations.append(package.__name__)
        while len(generations) > _KEPT_GENERATIONS:
            _forget(generations.popleft())
    return steps


def _execute_file(package: types.ModuleType, path: Path) -> None:
    module = types.ModuleType(f"{package.__name__}.{path.stem}")
    module.__package__ = package.__name__
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        source = path.read_bytes()
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - a project's own steps
    except StepError as error:
        raise CodeNotLoadable(f"{path.name}: {error}") from error
    except SyntaxError as error:
        raise CodeNotLoadable(f"{path.name}:{error.lineno}: {error.msg}") from error
    except OSError as error:
        raise CodeNotLoadable(f"{path.name}: {error.strerror}") from error
    except Exception as error:
        place = _line(error, str(path))
        raise CodeNotLoadable(f"{path.name}{place}: {type(error).__name__}: {error}") from error
    setattr(package, path.stem, module)


def _line(error: Exception, filename: str) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == filename
    ]
    return f":{lines[-1]}" if lines else ""


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.split(".", 1)[0] == package]:
        del sys.modules[name]
