"""Loads the Python files in which a project registers its own steps.

The files are executed from their source, in order, as the modules of a throw-away package: a later
file may import an earlier one with a relative import.  No bytecode is written beside them, because
a slot holds exactly the files of its bundle.  The package stays importable until the last pipeline
that was made of it is closed.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent.pipeline.errors import CodeNotLoadable, StepError
from edge_agent.pipeline.steps import Scope, Step, publish, registering

_counter: Final = itertools.count(1)
_lock = threading.Lock()


class Code:
    """What some step files registered, and the package that they are.

    A step may import from it while it answers, so it stays importable for as long as somebody
    holds it: whoever executed it, and each pipeline that was made of it.
    """

    def __init__(self, package: str, steps: Scope) -> None:
        """Hold `package` once."""
        self.scope = steps
        self._package = package
        self._holders = 1

    @property
    def steps(self) -> dict[str, Step]:
        return self.scope.steps

    def hold(self) -> Code:
        with _lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """Let go of it once; after the last one nothing can import from it any more."""
        with _lock:
            self._holders -= 1
            gone = not self._holders
        if gone:
            _forget(self._package)


_published: Final[dict[str, Code]] = {}
_publishing = threading.Lock()


def load_code(paths: Sequence[Path], scope: str) -> None:
    """Execute step files; what they register becomes the whole content of `scope`.

    Raises:
        CodeNotLoadable: a file cannot be read, compiled or executed; `scope` stays as it was.
    """
    code = execute(paths, scope)
    with _publishing:
        publish(scope, code.scope)
        before = _published.get(scope)
        _published[scope] = code
    if before is not None:
        before.release()


def code_of(scope: str) -> Code | None:
    """What `load_code` made the content of `scope`, held for the caller."""
    with _publishing:
        code = _published.get(scope)
        return None if code is None else code.hold()


def execute(paths: Sequence[Path], name: str) -> Code:
    """Execute step files for one pipeline, and publish nothing.

    Args:
        name: whose they are, so that their modules can be told apart.

    Returns:
        What they registered, held for the caller.

    Raises:
        CodeNotLoadable: a file cannot be read, compiled or executed.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
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
    return Code(package.__name__, steps)


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
    except (Exception, SystemExit) as error:  # a step file does not end whoever loads it
        place = _line(error, str(path))
        raise CodeNotLoadable(f"{path.name}{place}: {type(error).__name__}: {error}") from error
    setattr(package, path.stem, module)


def _line(error: BaseException, filename: str) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == filename
    ]
    return f":{lines[-1]}" if lines else ""


def _forget(package: str) -> None:
    for name in [name for name in list(sys.modules) if name.split(".", 1)[0] == package]:
        del sys.modules[name]
