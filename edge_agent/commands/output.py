"""How a command speaks: results on standard output, trouble and progress on standard error."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import NoReturn

from edge_agent.device.errors import DeviceError


def say(text: str) -> None:
    """Write a result to standard output, now.

    Raises:
        DeviceError: it takes nothing.
    """
    try:
        if sys.stdout is None:  # the process was started without one
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            # what it still holds would be tried again at the end, with a traceback
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DeviceError(f"standard output: {error.strerror or error}") from error


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on standard error."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            sys.stderr.write(f"skerry-agent: {' '.join(message.split())}\n")
            sys.stderr.flush()
    raise SystemExit(code)


class Bar:
    """One line that tells how far something is; on a terminal only."""

    def __init__(self) -> None:
        self._shown = ""
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._terminal and text != self._shown:
            self._write(f"\r\x1b[K{text}")
            self._shown = text

    def clear(self) -> None:
        """Remove the line, before something that stays is written."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
