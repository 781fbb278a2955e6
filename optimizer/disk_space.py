"""Whether something failed for want of disk space."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_BYTES: Final = 64 * 1024


def is_full(error: Exception, directory: Path) -> bool:
    """Whether `error` came of a full disk, a used-up quota or a limit on files.

    Runtimes that write files do not always say why they fail: then it is a full disk if there is no
    room in `directory` or where temporary files go.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    places = (directory, Path(tempfile.gettempdir()))
    return any(shutil.disk_usage(place).free < _NO_ROOM_BYTES for place in places)
