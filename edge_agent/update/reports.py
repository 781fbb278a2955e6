"""What the updater says: reports to the control plane, and the device's own view of an update.

Every outcome is journalled before it is reported, and so is each reason for which an assignment
waits or takes longer: it is told once, over restarts too.  The log has it once a start.  A report
that cannot be made now is made up for.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

from pydantic import JsonValue

from edge_agent.update.journal import Journal
from edge_agent.update.ports import Report
from edge_agent.update.store import Installed
from edge_agent.wire.messages import FINAL_PHASES, DesiredModel, Phase, UpdateReport

log = logging.getLogger("skerry.update")

MAX_DETAIL_CHARS: Final = 500


class Reporter:
    """Makes reports, and remembers what goes on.  `activity` from any thread."""

    def __init__(self, journal: Journal, report: Report) -> None:
        """
        Args:
            report: journals a report for the control plane; may raise.
        """
        self._journal = journal
        self._report = report
        self._lock = threading.Lock()
        self._under_way: dict[str, UpdateReport] = {}
        self._logged: set[tuple[str, int, str, str]] = set()

    def send(self, report: UpdateReport) -> None:
        """Report; what fails here is logged, and made up for by `send_again` if it has a reason.

        A reason that was told of this assignment is not told again.
        """
        final = report.phase in FINAL_PHASES
        with self._lock:
            if final:
                self._under_way.pop(report.model, None)
                self._logged = {each for each in self._logged if each[0] != report.model}
            else:
                self._under_way[report.model] = report
        if final or not report.reason or self._is_news(report):
            self._tell(report)

    def _is_news(self, report: UpdateReport) -> bool:
        """Log why an assignment waits; whether it is to be reported."""
        key = (report.model, report.generation, report.target, report.reason)
        with self._lock:
            if key in self._logged:
                return False
            self._logged.add(key)
        log.warning(
            "update.waiting model=%s phase=%s reason=%s: %s",
            report.model,
            report.phase,
            report.reason,
            report.detail,
        )
        try:
            return self._journal.keep_wait(report)
        except sqlite3.Error as error:
            log.error("update.not_kept reason=%s error=%s", report.reason, error)
            return True

    def _tell(self, report: UpdateReport) -> None:
        try:
            self._report(report)
        except Exception as error:
            log.error("update.not_reported phase=%s error=%s", report.phase, error)
            return
        if report.reason or report.phase in FINAL_PHASES:
            self._journal.mark_reported(report)

    def settle(self, reports: Sequence[UpdateReport]) -> None:
        """Journal and report how assignments ended, all or none."""
        for report in reports:
            if report.phase not in FINAL_PHASES:
                raise ValueError(f"{report.phase} is not final")
        for report in self._journal.settle(reports):
            self.send(report)

    def send_again(self) -> bool:
        """Make up for reports that were not made; whether none is left."""
        for report in self._journal.unreported():
            self._tell(report)
        return not self._journal.unreported()

    def forget_waiting(self, reason: str) -> None:
        """What waits for `reason` is to be logged again."""
        with self._lock:
            self._logged = {each for each in self._logged if each[3] != reason}

    def forget_others(self, wanted: Collection[str]) -> None:
        """Nothing is under way but of `wanted` models: what waited for long may just go away."""
        with self._lock:
            for model in self._under_way.keys() - set(wanted):
                del self._under_way[model]

    def activity(self) -> dict[str, JsonValue]:
        """What is under way, and the last refusal, for `/status`."""
        with self._lock:
            under_way = list(self._under_way.values())
        newest = under_way[-1] if under_way else None
        return {
            "phase": newest.phase if newest else "idle",
            "reason": newest.reason if newest else "",
            "detail": newest.detail if newest else "",
            "targets": [report.target for report in under_way],
            "last_refusal": self._last_refusal(),
        }

    def _last_refusal(self) -> dict[str, JsonValue] | None:
        refusal = self._journal.last_refusal()
        if refusal is None:
            return None
        report, at = refusal
        return {
            "model": report.model,
            "version": report.version,
            "target": report.target,
            "phase": report.phase,
            "reason": report.reason,
            "detail": report.detail,
            "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else None,
        }


def report_of_want(
    model: str,
    want: DesiredModel,
    phase: Phase,
    reason: str = "",
    detail: str = "",
    elapsed_s: float = 0.0,
) -> UpdateReport:
    """A report on what is wanted."""
    return UpdateReport(
        model=model,
        target=want.target,
        version=want.version,
        counter=want.counter,
        generation=want.generation,
        rollout=want.rollout,
        phase=phase,
        reason=reason,
        detail=detail[:MAX_DETAIL_CHARS],
        elapsed_s=elapsed_s,
    )


def report_of_installed(
    installed: Installed, phase: Phase, reason: str = "", detail: str = "", elapsed_s: float = 0.0
) -> UpdateReport:
    """A report on what was switched to."""
    return UpdateReport(
        model=installed.model,
        target=installed.target,
        version=installed.version,
        counter=installed.counter,
        generation=installed.generation,
        rollout=installed.rollout,
        phase=phase,
        reason=reason,
        detail=detail[:MAX_DETAIL_CHARS],
        elapsed_s=elapsed_s,
    )
