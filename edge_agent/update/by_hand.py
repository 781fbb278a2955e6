"""Installing from a medium that a person brought to the device.

The same trust, transfer and install code as over the line, over a medium's files.

Rules:
    * Whoever stands beside the device outranks pauses and maintenance windows; nothing outranks
      the signatures.
    * A bad medium ends nothing for good: what it fails at can still come by the line, or from
      another medium.  Only what both repositories name, and whose bytes were here whole, can fail.
    * One install at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from edge_agent.update.attempt import Source, twin_of
from edge_agent.update.errors import (
    BadMedium,
    NotAssigned,
    TransferFailed,
    TransferStalled,
    Unreachable,
    UpdateError,
)
from edge_agent.update.install import Installer, Progress
from edge_agent.update.medium import Medium
from edge_agent.update.ports import Event, Fetch, TransferError
from edge_agent.update.store import SlotStore
from edge_agent.update.transfer import Transfer
from edge_agent.update.trust import Assigned, Trust
from edge_agent.update.updater import Updater
from edge_agent.wire.messages import Desired, UpdateReport

log = logging.getLogger("skerry.update")


class Busy(Exception):
    """Another install by hand is under way."""


@dataclass(frozen=True, slots=True)
class MediumSource(Source):
    """A medium as the updater's source."""

    medium: Medium

    def desired(self) -> Desired:
        """What the medium's twin hints at, as it is signed; its numbers are anybody's.

        Raises:
            UpdateError: the medium's metadata is refused, now or ever; nothing is ended by it.
        """
        try:
            self.trust.refresh()
            hints = self.medium.desired.models
            assigned = {model: self.trust.verify(want.target) for model, want in hints.items()}
        except (Unreachable, NotAssigned) as error:
            detail = f"{self.medium.directory}: {error}"
            raise self.medium.fault or BadMedium(detail) from error
        return twin_of(assigned, {model: want.rollout for model, want in hints.items()})


class _Obtain:
    """`Obtain` of a medium: what the medium is at fault for is no end of an assignment."""

    def __init__(self, medium: Medium, installer: Installer) -> None:
        self._medium = medium
        self._installer = installer

    def __call__(
        self, assigned: Assigned, progress: Progress, interrupted: Callable[[], bool]
    ) -> Path:
        try:
            return self._installer(assigned, progress, interrupted)
        except (TransferFailed, TransferStalled, Unreachable, TransferError) as error:
            detail = f"{self._medium.directory}: {assigned.target}: {error}"
            raise self._medium.fault or BadMedium(detail) from error


class ByHand:
    """See the module.  `start` and `status` from any thread."""

    def __init__(
        self,
        *,
        device_id: str,
        directory: Path,
        updater: Updater,
        store: SlotStore,
        open_trust: Callable[[Fetch], Trust],
        event: Event,
        memory_bytes: int,
    ) -> None:
        """
        Args:
            directory: of the updater; what is copied from a medium lies there until it is staged.
            open_trust: the device's trust over another fetch; closed after each install.
            memory_bytes: what decoding may use.
        """
        self._device_id = device_id
        self._downloads = directory / "downloads"
        self._updater = updater
        self._store = store
        self._open_trust = open_trust
        self._event = event
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._medium: Medium | None = None
        self._shown: dict[str, JsonValue] | None = None

    def start(self, directory: Path) -> None:
        """Install on a thread of its own; `status` tells how it goes.

        Raises:
            Busy: another install is under way.
            BadMedium: the directory is no complete export for this device.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise Busy("another install from a medium is under way")
            medium = Medium(directory, self._device_id)
            self._begin(medium)
            self._thread = threading.Thread(
                target=self._install, args=(medium,), name="medium", daemon=True
            )
            self._thread.start()

    def install(self, directory: Path) -> dict[str, JsonValue]:
        """Install on this thread; returns what `status` shows at the end.

        Raises:
            BadMedium: the directory is no complete export for this device.
        """
        medium = Medium(directory, self._device_id)
        self._begin(medium)
        self._install(medium)
        return self.status() or {}

    def join(self, timeout_s: float) -> None:
        """Wait for the install under way."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def status(self) -> dict[str, JsonValue] | None:
        """The install under way, or the last one since the start; None when there was none.

        from        the directory
        running     whether it goes on
        read_bytes  bytes of bundles read so far
        refusal     reason and detail, where the medium was refused; else null
        results     of each model: version, phase, reason, detail
        """
        shown, medium = self._shown, self._medium
        if shown is None:
            return None
        return shown if medium is None else shown | {"read_bytes": medium.chunks.read_bytes}

    def _begin(self, medium: Medium) -> None:
        self._medium = medium
        self._shown = {
            "from": str(medium.directory),
            "running": True,
            "read_bytes": 0,
            "refusal": None,
            "results": [],
        }
        log.info("medium.opened directory=%s", medium.directory)

    def _install(self, medium: Medium) -> None:
        ended: dict[str, JsonValue] = {"running": False}
        try:
            ended["results"] = [_shown(report) for report in self._reports(medium)]
        except UpdateError as error:
            ended["refusal"] = self._refused(error.reason, str(error))
        except Exception as error:
            log.exception("medium.failed_unexpectedly")
            ended["refusal"] = self._refused("internal_error", f"{type(error).__name__}: {error}")
        finally:
            ended["read_bytes"] = medium.chunks.read_bytes
            self._shown = (self._shown or {}) | ended
            self._medium = None
            medium.close()

    def _reports(self, medium: Medium) -> list[UpdateReport]:
        trust = self._open_trust(medium.fetch)
        try:
            installer = Installer(
                self._store,
                Transfer(medium.chunks, self._downloads),
                medium.fetch,
                self._downloads,
                memory_bytes=self._memory_bytes,
            )
            source = MediumSource(trust, _Obtain(medium, installer), medium)
            return [self._settled(each) for each in self._updater.install_from(source)]
        finally:
            trust.close()

    def _settled(self, report: UpdateReport) -> UpdateReport:
        """`report`, or that its version is on probation: one that was switched to before is."""
        current = self._store.current(report.model)
        if report.reason or current is None or not current.pending:
            return report
        if (current.target, current.generation) != (report.target, report.generation):
            return report
        return report.model_copy(update={"phase": "probation"})

    def _refused(self, reason: str, detail: str) -> JsonValue:
        log.warning("medium.refused reason=%s: %s", reason, detail)
        refusal: dict[str, JsonValue] = {"reason": reason, "detail": detail[:500]}
        try:
            self._event("medium.refused", refusal)
        except Exception as error:  # a full journal is no reason to end without an answer
            log.error("medium.not_reported error=%s", error)
        return refusal


def _shown(report: UpdateReport) -> JsonValue:
    return {
        "model": report.model,
        "version": report.version,
        "phase": report.phase,
        "reason": report.reason,
        "detail": report.detail,
    }
