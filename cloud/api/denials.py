"""Who was refused for their role or person: in the log and the audit, but not without end.

A caller who asks again and again writes one entry a minute for each thing asked; the audit is one
hash chain, which a token of a viewer must not be able to flood.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from cloud.db.engine import Sessions
from cloud.registry import audit

log = logging.getLogger("skerry.api")

AGAIN_AFTER_S: Final = 60.0
MAX_REMEMBERED: Final = 1000
"""More pairs of caller and thing than this at once: the oldest are forgotten."""


class Denials:
    """Remembers what was written when; for use by the threads of one process."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._written: dict[tuple[str, str], float] = {}

    def record(self, writers: Sessions, actor: str, asked: str, reason: str) -> None:
        """Write that `actor` was refused what they `asked`, unless that was done just now."""
        if not self._is_due((actor, asked)):
            return
        log.warning("access.refused actor=%s asked=%r reason=%r", actor, asked, reason)
        with writers.begin() as session:
            audit.append(session, actor, "access.refused", asked, {"reason": reason})

    def _is_due(self, key: tuple[str, str]) -> bool:
        now = self._monotonic()
        with self._lock:
            last = self._written.pop(key, None)
            due = last is None or now - last >= AGAIN_AFTER_S
            self._written[key] = now if due or last is None else last
            while len(self._written) > MAX_REMEMBERED:
                self._written.pop(next(iter(self._written)))
        return due
