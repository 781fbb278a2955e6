"""One thread that brings a device to its desired versions, and back when they misbehave.

verify metadata → download → decode → stage → self-test → switch → probation → commit or revert.

Rules:
    * The desired twin is a hint; what is installed is what both signed repositories name.
    * The version that serves goes on serving until its successor passed the self-test, and comes
      back when the successor fails its probation.
    * An assignment (model, generation, target) ends once: final phases are journalled, reported,
      and never tried again.  What may yet succeed (no connection, expired metadata) is retried
      with growing pauses and reported once a reason.
    * Whatever raises here ends in a report or a retry, never in a dead thread; a report that
      cannot be journalled now is made up for, and stops no update.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.update.errors import (
    Failed,
    Interrupted,
    NotAssigned,
    NotYet,
    Refused,
    TransferStalled,
    UpdateError,
)
from edge_agent.update.health import Probation, Unhealthy
from edge_agent.update.install import Installer, Obtain
from edge_agent.update.journal import Journal
from edge_agent.update.ports import Activate, ChunkPort, Clock, Deactivate, Fetch, Health, Report
from edge_agent.update.selftest import SelfTestResult, run_selftest
from edge_agent.update.store import Installed, SlotStore
from edge_agent.update.transfer import Transfer
from edge_agent.update.trust import Assigned, Trust
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Limits, Manifest
from edge_agent.wire.messages import FINAL_PHASES, Desired, DesiredModel, Phase, UpdateReport

log = logging.getLogger("skerry.update")

RETRY_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses between retries; the last one repeats.  Each is jittered by ±20 %."""
RETRY_CAPS: Final[dict[type[NotYet], int]] = {NotAssigned: 6, TransferStalled: 10}
"""Tries after which these become final."""
PROBATION_SAMPLES: Final = 10

SelfTest = Callable[[Path], SelfTestResult]


class Updater:
    """See the module."""

    def __init__(
        self,
        *,
        store: SlotStore,
        trust: Trust,
        obtain: Obtain,
        journal: Journal,
        activate: Activate,
        report: Report,
        health: Health,
        deactivate: Deactivate | None = None,
        selftest: SelfTest = run_selftest,
        clock: Clock = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """
        Args:
            obtain: turns a verified assignment into a staged slot.
            activate: serves the bundle in a directory under a model's name; raises if it cannot.
            report: journals a report for the control plane.
            health: serving figures of a model since the last call by this updater.
            deactivate: stops serving a model whose first version failed.
            selftest: tries a staged bundle.
            clock: monotonic seconds.
            wait: pauses for some seconds, True when stopping; defaults to an interruptible sleep.
        """
        self._store = store
        self._trust = trust
        self._obtain = obtain
        self._journal = journal
        self._activate = activate
        self._report_out = report
        self._health = health
        self._deactivate = deactivate
        self._selftest = selftest
        self._clock = clock
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._wait = wait or self._stopping.wait
        self._desired: Desired | None = None
        self._tries: dict[tuple[str, int, str], int] = {}
        self._said: set[tuple[str, int, str]] = set()
        self._unserved: set[str] = set()  # models whose committed version does not load

    # ── from other threads ───────────────────────────────────────────────────────────────────────

    def submit(self, desired: Desired) -> None:
        """Set the newest desired twin and wake the thread; interrupts what it supersedes."""
        self._desired = desired
        self._woken.set()

    def wake(self) -> None:
        """Retry now what is waiting, for example after a reconnect."""
        self._woken.set()

    def stop(self) -> None:
        """End `run` soon; a download keeps what it has, a probation resumes at the next start."""
        self._stopping.set()
        self._woken.set()

    def run(self) -> None:
        """Body of the thread: apply the desired twin whenever it changes, until `stop`."""
        failures = 0
        while not self._stopping.is_set():
            try:
                self.resume()
                desired = self._desired
                settled = desired is None or self.apply(desired)
            except Exception:
                log.exception("update.failed_unexpectedly")
                settled = False
            failures = 0 if settled else failures + 1
            self._woken.wait(_pause_s(failures) if failures else None)
            self._woken.clear()

    # ── at start ─────────────────────────────────────────────────────────────────────────────────

    def restore(self) -> list[Installed]:
        """Bring back what was served before the last stop; needs no network, and no room on disk.

        Returns:
            What is served now.
        """
        try:
            for reverted in self._store.recover():
                detail = f"{reverted.abandoned.tries + 1} starts without passing probation"
                self._settle(_report_of(reverted.abandoned, "rolled_back", "crashed", detail))
            self._report_again()
        except Exception:
            # a disk that takes no writes is no reason to stop serving
            log.exception("update.not_recovered")
        return [served for model in self._store.models() if (served := self._serve(model))]

    def _serve(self, model: str) -> Installed | None:
        installed = self._store.current(model)
        while installed is not None:
            try:
                self._activate(model, installed.path)
            except Exception as error:
                log.error("model.not_activated model=%s error=%s", model, error)
                if not installed.pending:
                    self._unserved.add(model)
                    return None
                installed = self._abandon(installed, "activation_failed", str(error), serve=False)
            else:
                log.info("model.activated model=%s version=%d", model, installed.version)
                return installed
        return None

    def resume(self) -> None:
        """Finish probations that a restart or an error interrupted."""
        for model in self._store.models():
            current = self._store.current(model)
            if current is not None and current.pending:
                self._probe(current, self._clock())

    # ── one pass ─────────────────────────────────────────────────────────────────────────────────

    def apply(self, desired: Desired) -> bool:
        """Install what `desired` hints at; blocks through downloads and probations.

        Returns:
            Whether every model is settled; False asks for a retry later.
        """
        if self._desired is None:
            self._desired = desired
        settled = True
        for model, want in desired.models.items():
            if self._stopping.is_set():
                return False
            settled &= self._update(model, want)
        return self._report_again() and settled

    def _update(self, model: str, want: DesiredModel) -> bool:
        if self._journal.outcome(model, want.generation, want.target) is not None:
            return True
        started_at = self._clock()
        current = self._store.current(model)
        installed = current is not None and not current.pending and current.target == want.target
        if installed and model not in self._unserved:
            self._settle(self._report(model, want, "healthy", started_at))
            return True
        try:
            if current is not None and _awaits_probation(current, want):
                self._probe(current, started_at)
            else:
                self._install(model, want, started_at)
        except NotYet as error:
            return self._not_yet(model, want, error, started_at)
        except Exception as error:
            if self._stopping.is_set():
                return False  # what it needs may be closed already; the next start tries again
            return self._failed(model, want, error, started_at)
        return True

    def _failed(self, model: str, want: DesiredModel, error: Exception, started_at: float) -> bool:
        """End an attempt that raised; False when it is to be resumed instead."""
        if isinstance(error, UpdateError):
            phase: Phase = "rejected" if isinstance(error, Refused) else "failed"
            self._end(model, want, phase, error.reason, str(error), started_at)
        elif isinstance(error, OSError):
            reason = "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io_error"
            self._end(model, want, "failed", reason, str(error), started_at)
        else:
            log.error(
                "update.failed_unexpectedly model=%s target=%s",
                model,
                want.target,
                exc_info=error,
            )
            current = self._store.current(model)
            if current is not None and _awaits_probation(current, want):
                return False  # it is switched to, so its probation has the last word
            detail = f"{type(error).__name__}: {error}"
            self._end(model, want, "failed", "internal_error", detail, started_at)
        return True

    def _install(self, model: str, want: DesiredModel, started_at: float) -> None:
        self._trust.refresh()
        assigned = self._trust.verify(want.target)
        if assigned.release.model != model:
            raise Refused(f"{want.target} is not a release of {model}", "wrong_profile")

        def interrupted() -> bool:
            return self._stopping.is_set() or self._superseded(model, want) is not None

        def progress(phase: Phase) -> None:
            self._send(self._report(model, want, phase, started_at))

        slot = self._obtain(assigned, progress, interrupted)
        result = self._selftest(slot)
        if not result.ok:
            self._store.discard(model, assigned.sha256)
            raise Failed(result.detail, "selftest_failed")
        if interrupted():
            raise Interrupted("superseded before the switch")
        progress("activating")
        self._switch(model, want, assigned, started_at)

    def _switch(
        self, model: str, want: DesiredModel, assigned: Assigned, started_at: float
    ) -> None:
        self._trust.accept(assigned.release)
        installed = self._store.switch(
            model,
            assigned.sha256,
            assigned.release,
            want.target,
            generation=want.generation,
            rollout=want.rollout,
            probation_s=assigned.probation_s,
        )
        try:
            self._activate(model, installed.path)
        except Exception as error:
            self._abandon(installed, "activation_failed", str(error), started_at=started_at)
            return
        self._unserved.discard(model)
        log.info("model.activated model=%s version=%d", model, installed.version)
        self._send(self._report(model, want, "probation", started_at))
        self._probe(installed, started_at)

    # ── probation ────────────────────────────────────────────────────────────────────────────────

    def _probe(self, installed: Installed, started_at: float) -> None:
        """Watch a pending version; commit it, or go back.  Leaves it pending when stopping."""
        model = installed.model
        try:
            unhealthy = self._watch(installed)
        except Interrupted:
            return
        except Exception as error:
            log.exception("update.probation_failed model=%s", model)
            unhealthy = Unhealthy("internal_error", f"{type(error).__name__}: {error}")
        if unhealthy is not None:
            self._abandon(installed, unhealthy.reason, unhealthy.detail, started_at=started_at)
            return
        self._store.commit(model)
        log.info("model.committed model=%s version=%d", model, installed.version)
        elapsed_s = self._clock() - started_at
        self._settle(_report_of(installed, "healthy", elapsed_s=elapsed_s))

    def _watch(self, installed: Installed) -> Unhealthy | None:
        """The verdict of a probation.

        Raises:
            Interrupted: stopping.
        """
        model = installed.model
        probation = Probation(_limits(installed.path))
        self._health(model)  # what came before the switch does not count
        end_at = self._clock() + installed.probation_s
        unhealthy: Unhealthy | None = None
        while unhealthy is None and self._clock() < end_at:
            pause_s = min(installed.probation_s / PROBATION_SAMPLES, end_at - self._clock())
            if self._wait(max(pause_s, 0.01)):
                raise Interrupted("stopping")
            sample = self._health(model)
            if sample is not None:
                unhealthy = probation.add(sample)
        return unhealthy or probation.verdict()

    def _abandon(
        self,
        installed: Installed,
        reason: str,
        detail: str,
        *,
        serve: bool = True,
        started_at: float | None = None,
    ) -> Installed | None:
        """Back to the version before; reports, and returns what is current then."""
        try:
            restored = self._store.revert(installed.model)
        except OSError as error:
            # the database has reverted; the next start mends the link
            log.error("update.link_not_reverted model=%s error=%s", installed.model, error)
            restored = self._store.current(installed.model)
        log.warning(
            "model.reverted model=%s version=%d reason=%s",
            installed.model,
            installed.version,
            reason,
        )
        if serve and restored is not None:
            self._serve(installed.model)
        elif serve and self._deactivate is not None:
            self._deactivate(installed.model)
        elapsed_s = 0.0 if started_at is None else self._clock() - started_at
        self._settle(_report_of(installed, "rolled_back", reason, detail, elapsed_s))
        return restored

    # ── ends and reports ─────────────────────────────────────────────────────────────────────────

    def _superseded(self, model: str, want: DesiredModel) -> Phase | None:
        """The phase that a newer twin puts `want` into; None while it stands."""
        newest = self._desired.models.get(model) if self._desired is not None else None
        if newest is None:
            return "cancelled"
        same = (newest.generation, newest.target) == (want.generation, want.target)
        return None if same else "superseded"

    def _not_yet(self, model: str, want: DesiredModel, error: NotYet, started_at: float) -> bool:
        """Whether the attempt is settled: superseded, or tried too often."""
        if isinstance(error, Interrupted):
            phase = self._superseded(model, want)
            if phase is not None and not self._stopping.is_set():
                self._end(model, want, phase, "", "", started_at)
                return True
            return False
        key = (model, want.generation, error.reason)
        self._tries[key] = self._tries.get(key, 0) + 1
        cap = RETRY_CAPS.get(type(error))
        if cap is not None and self._tries[key] >= cap:
            phase = "rejected" if isinstance(error, NotAssigned) else "failed"
            self._end(model, want, phase, error.reason, str(error), started_at)
            return True
        if key not in self._said:
            self._said.add(key)
            log.warning("update.waiting model=%s reason=%s: %s", model, error.reason, error)
            self._send(
                self._report(model, want, "downloading", started_at, error.reason, str(error))
            )
        return False

    def _end(
        self,
        model: str,
        want: DesiredModel,
        phase: Phase,
        reason: str,
        detail: str,
        started_at: float,
    ) -> None:
        log.warning(
            "update.ended model=%s target=%s phase=%s reason=%s: %s",
            model,
            want.target,
            phase,
            reason,
            detail,
        )
        self._settle(self._report(model, want, phase, started_at, reason, detail))

    def _settle(self, report: UpdateReport) -> None:
        if report.phase not in FINAL_PHASES:
            raise ValueError(f"{report.phase} is not final")
        self._send(self._journal.settle(report))

    def _send(self, report: UpdateReport) -> None:
        try:
            self._report_out(report)
        except Exception as error:
            log.error("update.not_reported phase=%s error=%s", report.phase, error)
            return
        if report.phase in FINAL_PHASES:
            self._journal.mark_reported(report)

    def _report_again(self) -> bool:
        """Make up for reports of outcomes that were not made; whether none is left."""
        for report in self._journal.unreported():
            self._send(report)
        return not self._journal.unreported()

    def _report(
        self,
        model: str,
        want: DesiredModel,
        phase: Phase,
        started_at: float,
        reason: str = "",
        detail: str = "",
    ) -> UpdateReport:
        return UpdateReport(
            model=model,
            target=want.target,
            version=want.version,
            counter=want.counter,
            generation=want.generation,
            rollout=want.rollout,
            phase=phase,
            reason=reason,
            detail=detail[:500],
            elapsed_s=self._clock() - started_at,
        )


def _report_of(
    installed: Installed, phase: Phase, reason: str = "", detail: str = "", elapsed_s: float = 0.0
) -> UpdateReport:
    return UpdateReport(
        model=installed.model,
        target=installed.target,
        version=installed.version,
        counter=installed.counter,
        generation=installed.generation,
        rollout=installed.rollout,
        phase=phase,
        reason=reason,
        detail=detail[:500],
        elapsed_s=elapsed_s,
    )


def _awaits_probation(installed: Installed, want: DesiredModel) -> bool:
    """Whether `installed` is what `want` wants, switched to and not yet judged."""
    return (
        installed.pending
        and installed.target == want.target
        and installed.generation == want.generation
    )


def _limits(slot: Path) -> Limits:
    data = (slot / MANIFEST_NAME).read_bytes()
    return Manifest.decode(data, limit=MAX_MANIFEST_BYTES).limits


def _pause_s(failures: int) -> float:
    pause_s = RETRY_PAUSES_S[min(failures, len(RETRY_PAUSES_S)) - 1]
    return pause_s * random.uniform(0.8, 1.2)


def open_updater(
    directory: Path,
    *,
    trust: Trust,
    fetch: Fetch,
    chunks: ChunkPort,
    activate: Activate,
    report: Report,
    health: Health,
    deactivate: Deactivate | None = None,
    selftest: SelfTest = run_selftest,
) -> tuple[Updater, SlotStore]:
    """An updater on one directory of the device, and its store.

    Args:
        directory: holds slots, partial downloads and the journal.
        fetch: gets `chunks/SHA256`, the chunk lists.
        chunks: where chunks are asked for and arrive.
    """
    store = SlotStore(directory)
    downloads = directory / "downloads"
    installer = Installer(store, Transfer(chunks, downloads), fetch, downloads)
    updater = Updater(
        store=store,
        trust=trust,
        obtain=installer,
        journal=Journal(directory / "journal.sqlite"),
        activate=activate,
        report=report,
        health=health,
        deactivate=deactivate,
        selftest=selftest,
    )
    return updater, store
