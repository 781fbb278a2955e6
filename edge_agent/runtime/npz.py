"""Reading `.npz` files that came from somewhere else: never pickled, one kind of error."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from edge_agent.runtime.session import Tensors


def read_npz(path: Path) -> Tensors:
    """All arrays of an `.npz`, by name.

    Raises:
        ValueError: missing, damaged, no archive, or it holds pickled objects.
    """
    try:
        # numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name}: cannot be read: {error}") from error
