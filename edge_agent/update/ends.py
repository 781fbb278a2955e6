"""How attempts end that did not get through: waiting, superseded, tried too often, failed."""

from __future__ import annotations

import logging
from typing import Final

from edge_agent.update.attempt import Attempt, disk_reason
from edge_agent.update.errors import (
    IncompleteGroup,
    Interrupted,
    NotAssigned,
    NotYet,
    OutsideWindow,
    Paused,
    Refused,
    TransferStalled,
    UpdateError,
)
from edge_agent.update.orders import Orders
from edge_agent.update.store import SlotStore
from edge_agent.wire.messages import Phase

log = logging.getLogger("skerry.update")

RETRY_CAPS: Final[dict[type[NotYet], int]] = {
    NotAssigned: 6,
    IncompleteGroup: 6,
    TransferStalled: 10,
}
"""Tries after which these become final."""


class Ends:
    """See the module.  For one thread at a time."""

    def __init__(self, store: SlotStore, orders: Orders) -> None:
        self._store = store
        self._orders = orders
        self._tries: dict[tuple[object, str], int] = {}

    def not_yet(self, attempt: Attempt, error: NotYet) -> bool:
        """Whether the attempt is settled: superseded, or tried too often."""
        if isinstance(error, Interrupted):
            if self._orders.stopping.is_set():
                return False
            superseded = self._orders.superseded(attempt)
            for model, ended in superseded.items():
                attempt.settle(ended, models=[model])
            if superseded or attempt.by_hand or not self._orders.paused:
                return len(superseded) == len(attempt.wants)
            error = Paused("updates are paused on this device")
        key = (attempt.unit.key, error.reason)
        cap = RETRY_CAPS.get(type(error))
        if isinstance(error, TransferStalled) and error.advanced:
            self._tries.pop(key, None)  # a line that brings enough each time is no dead end
        if cap is not None and not attempt.by_hand:
            self._tries[key] = self._tries.get(key, 0) + 1
            if self._tries[key] >= cap:
                phase: Phase = "failed" if isinstance(error, TransferStalled) else "rejected"
                self.end(attempt, phase, error.reason, str(error))
                return True
        phase = "staged" if isinstance(error, OutsideWindow) else "downloading"
        for model in attempt.wants:
            attempt.report(phase, model, error.reason, str(error))
        return False

    def failed(self, attempt: Attempt, error: Exception) -> bool:
        """End an attempt that raised; returns True, for it is settled."""
        if isinstance(error, UpdateError):
            phase: Phase = "rejected" if isinstance(error, Refused) else "failed"
            self.end(attempt, phase, error.reason, str(error))
            return True
        log_unexpected(attempt, error)
        reason, detail = disk_reason(error), str(error)
        if reason is None:
            reason, detail = "internal_error", f"{type(error).__name__}: {error}"
        self.end(attempt, "failed", reason, detail)
        return True

    def end(self, attempt: Attempt, phase: Phase, reason: str, detail: str) -> None:
        """End what is wanted, and remove what was staged for it."""
        log.warning(
            "update.ended model=%s target=%s phase=%s reason=%s: %s",
            attempt.blame or min(attempt.wants),
            ", ".join(want.target for want in attempt.wants.values()),
            phase,
            reason,
            detail,
        )
        for model, sha256 in attempt.staged.items():
            self._store.discard(model, sha256)
        attempt.settle(phase, reason, detail)


def log_unexpected(attempt: Attempt, error: Exception) -> None:
    """Log an error that is neither ours nor the disk's, with where it came from."""
    if disk_reason(error) is None:
        log.error(
            "update.failed_unexpectedly model=%s target=%s",
            min(attempt.wants),
            ", ".join(want.target for want in attempt.wants.values()),
            exc_info=error,
        )
