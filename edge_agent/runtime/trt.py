"""The place of TensorRT sessions.

The port is fixed; the session itself is not written.  Asking for it says so plainly rather than
falling back to another runtime, which would serve figures that nobody measured.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NoReturn

from edge_agent.runtime.errors import RuntimeUnavailable
from edge_agent.wire.manifest import ModelSpec


def open_tensorrt(path: Path, spec: ModelSpec) -> NoReturn:
    """Refuse.

    Raises:
        RuntimeUnavailable: always; the reason tells whether the package or the session is missing.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise RuntimeUnavailable("tensorrt", "the package tensorrt is not installed")
    raise RuntimeUnavailable("tensorrt", "this version of the agent has no TensorRT session")
