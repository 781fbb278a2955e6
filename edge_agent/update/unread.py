"""A desired twin that cannot be read: told once, shown until one comes that can.

The twin is retained, so the broker hands the same one over at every connect and after every start;
it is known by the digest of its bytes.  What serves, and what the last readable twin wants, stand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from datetime import UTC, datetime
from typing import Final

from pydantic import JsonValue

from edge_agent.update.errors import MalformedTwin
from edge_agent.update.journal import Journal, UnreadTwin
from edge_agent.update.ports import Clock, Event
from edge_agent.update.reports import MAX_DETAIL_CHARS

log = logging.getLogger("skerry.update")

EVENT: Final = "twin.refused"


class UnreadTwins:
    """See the module.  `came`, `came_well` and `status` from any thread; `settle` from one."""

    def __init__(self, journal: Journal, event: Event, clock: Clock) -> None:
        """
        Args:
            event: journals an event for the control plane; may raise.
            clock: seconds since the epoch.
        """
        self._journal = journal
        self._event = event
        self._clock = clock
        self._lock = threading.Lock()
        self._kept = self._newest = journal.unread_twin()

    def came(self, payload: bytes, cause: Exception) -> None:
        """This one could not be read; only noted here, for handlers must not block."""
        sha256 = hashlib.sha256(payload).hexdigest()
        detail = " ".join(str(cause).split())[:MAX_DETAIL_CHARS]
        with self._lock:
            if self._newest is None or self._newest.sha256 != sha256:
                self._newest = UnreadTwin(sha256, detail, self._clock(), reported=False)

    def came_well(self) -> None:
        """The newest twin can be read."""
        with self._lock:
            self._newest = None

    def settle(self) -> None:
        """Keep, log and tell what came.

        Raises:
            sqlite3.Error, LinkError: it cannot be kept or told now; call again.
        """
        with self._lock:
            newest = self._newest
        if newest is None:
            if self._kept is not None:
                self._keep(None)
            return
        if self._kept is None or self._kept.sha256 != newest.sha256:
            log.warning("twin.refused reason=%s: %s", MalformedTwin.reason, newest.detail)
            self._keep(newest)
        if self._kept is not None and not self._kept.reported:
            self._event(EVENT, {"reason": MalformedTwin.reason, "detail": newest.detail})
            self._keep(dataclasses.replace(newest, reported=True))

    def status(self) -> dict[str, JsonValue] | None:
        """Reason, detail and time (UTC) of a twin that could not be read; None otherwise."""
        with self._lock:
            newest = self._newest
        if newest is None:
            return None
        at = datetime.fromtimestamp(newest.at, UTC).isoformat(timespec="seconds")
        return {"reason": MalformedTwin.reason, "detail": newest.detail, "at": at}

    def _keep(self, twin: UnreadTwin | None) -> None:
        self._journal.keep_unread_twin(twin)
        self._kept = twin
