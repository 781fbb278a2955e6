"""The last lines of the agent's log, in memory: a device's log is wherever its service manager
puts it, if anywhere.

Bounded by bytes.  An orderly end writes them to the disk, and the next start begins with them, so
that what came before a restart can be read after it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path
from typing import Final

from edge_agent.disk import write_whole
from edge_agent.logs import TEXT_FORMAT, TextLines

KEPT_BYTES: Final = 192 * 1024
SAVED_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 4 * 1024
"""A longer line, such as a traceback, is cut."""


class LogTail(logging.Handler):
    """Keeps what is logged.  Thread-safe; hang it on a logger."""

    def __init__(self, path: Path, kept_bytes: int = KEPT_BYTES) -> None:
        """
        Args:
            path: of the lines that the last orderly end left; read when it is there.
        """
        super().__init__()
        self.setFormatter(TextLines(TEXT_FORMAT))
        self._path = path
        self._kept_bytes = kept_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._guard = threading.Lock()
        try:
            before = path.read_bytes()[-SAVED_BYTES:]
        except OSError:
            before = b""
        for line in before.splitlines():
            self._keep(line)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._keep(line.encode("utf-8", "replace"))

    def last(self, lines: int, max_bytes: int) -> bytes:
        """The last `lines` records, oldest first, as many as fit into `max_bytes`."""
        with self._guard:
            kept = list(self._lines)[-lines:]
        while kept and sum(map(len, kept)) + len(kept) > max_bytes:
            kept.pop(0)
        return b"".join(line + b"\n" for line in kept)

    def save(self) -> None:
        """Leave the last lines for the next start; what the disk refuses is lost."""
        try:
            write_whole(self._path, self.last(len(self._lines) or 1, SAVED_BYTES))
        except OSError as error:
            logging.getLogger("skerry.commands").warning("log.not_saved cause=%s", error)

    def _keep(self, line: bytes) -> None:
        line = line[:MAX_LINE_BYTES]
        with self._guard:
            self._lines.append(line)
            self._bytes += len(line) + 1
            while self._bytes > self._kept_bytes:
                self._bytes -= len(self._lines.popleft()) + 1
