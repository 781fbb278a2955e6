"""One thread that brings a device to its desired versions, and back when they misbehave.

verify metadata → download → decode → stage → self-test → switch → probation → commit or revert.

Rules:
    * The desired twin is a hint; what is installed is what both signed repositories name.
    * The version that serves goes on serving until its successor passed the self-test, and comes
      back when the successor fails its probation.
    * What is tried beside the version that serves comes after everything else (`trials`).
    * The bundles of a group go through each of these steps together, and are switched, committed
      and reverted as one; whatever stops one of them stops all.
    * An assignment (model, generation, target) ends once: final phases are journalled, reported,
      and never tried again.  What may yet succeed (no connection, expired metadata) is retried
      with growing pauses and reported once a reason.  One that ended well is open again when the
      device can no longer load what it had installed.
    * Paused, the updater begins nothing and ends a download; it finishes a probation.  Outside the
      maintenance windows it does all but the switch.
    * Whatever raises here ends in a report or a retry, never in a dead thread; a report that
      cannot be journalled now is made up for, and stops no update.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from edge_agent.update.attempt import Attempt, Source
from edge_agent.update.errors import Paused
from edge_agent.update.groups import trials, units
from edge_agent.update.install import Installer, Obtain
from edge_agent.update.journal import Journal
from edge_agent.update.orders import Orders
from edge_agent.update.passes import Passes
from edge_agent.update.ports import (
    Activate,
    Beside,
    ChunkPort,
    Clock,
    Deactivate,
    Event,
    Fetch,
    Health,
    Report,
)
from edge_agent.update.reports import Reporter
from edge_agent.update.selftest import SelfTestResult, run_selftest
from edge_agent.update.serving import ActivateAll, Serving
from edge_agent.update.store import Installed, SlotStore
from edge_agent.update.transfer import Pace, Transfer
from edge_agent.update.trials import Trials
from edge_agent.update.trust import Trust
from edge_agent.update.unread import UnreadTwins
from edge_agent.update.watch import Recheck, Watch
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import Desired, UpdateReport
from edge_agent.wire.windows import Window

log = logging.getLogger("skerry.update")

RETRY_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses between retries; the last one repeats.  Each is jittered by ±20 %."""
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
        event: Event = lambda name, fields: None,
        deactivate: Deactivate | None = None,
        activate_all: ActivateAll | None = None,
        selftest: SelfTest | None = None,
        selftest_memory_mib: int | None = None,
        recheck: Recheck | None = None,
        clock: Clock = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        windows: Sequence[Window] = (),
        now: Callable[[], datetime] = datetime.now,
        share_done: Callable[[], float | None] | None = None,
        tidy: Callable[[], None] = lambda: None,
        beside: Beside | None = None,
    ) -> None:
        """
        Args:
            obtain: turns a verified assignment into a staged slot.
            activate: serves the bundle in a directory under a model's name; raises if it cannot.
            report: journals a report for the control plane.
            health: serving figures of a model since the last call by this updater.
            event: journals an event for the control plane, as of a twin that cannot be read.
            deactivate: stops serving a model whose first version failed.
            activate_all: `activate` of a group, so that its versions change at the same time;
                raises if one cannot.  Without it they change one after the other.
            selftest: tries a staged bundle; None is the real one, which an interruption ends.
            selftest_memory_mib: what that may take; None is its share of the device's memory.
            recheck: has a model answer its golden inputs once more at the end of its probation.
            clock: monotonic seconds.
            wait: pauses for some seconds, True when stopping; defaults to an interruptible sleep.
            windows: when versions may be switched; empty is always.
            now: local time without a zone, for the windows.
            share_done: how much of the download under way is here, 0 to 1, for `status`.
            tidy: frees what crashes left behind; called when all that is wanted has ended.
            beside: tries versions beside those that serve; None leaves every trial alone.
        """
        self._source = Source(trust, obtain)
        self._journal = journal
        self._report_out = report
        self._health = health
        self._selftest = selftest
        self._selftest_memory_mib = selftest_memory_mib
        self._clock = clock
        self._share_done = share_done
        self._tidy = tidy
        self._orders = Orders(windows, now, paused=journal.paused)
        self._woken = threading.Event()
        self._wait = wait or self._orders.stopping.wait
        self._turn = threading.RLock()  # one pass at a time, on whichever thread
        self._reporter = Reporter(journal, lambda made: self._report_out(made))
        self._unread = UnreadTwins(journal, event, time.time)
        self._passes = Passes(
            store=store,
            journal=journal,
            reporter=self._reporter,
            orders=self._orders,
            serving=Serving(store, journal, activate, deactivate, activate_all),
            watch=Watch(
                lambda model: self._health(model),
                clock,
                lambda seconds: self._wait(seconds),
                recheck,
            ),
            selftest=self._tried,
            clock=clock,
        )
        self._trials = (
            None
            if beside is None
            else Trials(
                store=store,
                journal=journal,
                reporter=self._reporter,
                orders=self._orders,
                beside=beside,
                watch=Watch(
                    beside.health, clock, lambda seconds: self._wait(seconds), beside.recheck
                ),
                selftest=self._tried,
                clock=clock,
            )
        )

    # ── from other threads ───────────────────────────────────────────────────────────────────────

    def submit(self, desired: Desired) -> None:
        """Set the newest desired twin and wake the thread; interrupts what it supersedes."""
        self._unread.came_well()
        self._orders.desired = desired
        self._woken.set()

    def refuse(self, payload: bytes, cause: WireError) -> None:
        """The newest desired twin cannot be read; the thread tells so, and the one before stands.

        Args:
            payload: as it came.
            cause: what is wrong with it.
        """
        self._unread.came(payload, cause)
        self._woken.set()

    def wake(self) -> None:
        """Retry now what is waiting, for example after a reconnect."""
        self._woken.set()

    def stop(self) -> None:
        """End `run` soon; a download keeps what it has, a probation resumes at the next start."""
        self._orders.stopping.set()
        self._woken.set()

    @property
    def paused(self) -> bool:
        """Whether the device's operator paused updates."""
        return self._orders.paused

    def pause(self) -> None:
        """Begin no update any more until `resume`, over restarts too.  Idempotent.

        A download under way stops and keeps what it has; a probation goes on to its verdict.

        Raises:
            sqlite3.Error: it cannot be remembered; nothing changed.
        """
        self._journal.set_paused(True)
        self._orders.paused = True
        log.warning("update.paused")
        self._woken.set()

    def resume(self) -> None:
        """End a pause.  Idempotent.

        Raises:
            sqlite3.Error: it cannot be remembered; nothing changed.
        """
        self._journal.set_paused(False)
        self._orders.paused = False
        log.info("update.resumed")
        self._reporter.forget_waiting(Paused.reason)
        self._woken.set()

    def status(self) -> dict[str, JsonValue]:
        """What goes on, as JSON: the `update` block of `/status`.

        phase         of the update under way, "idle" without one
        reason        why it waits, a slug as in reports; empty when it does not
        detail        the same for a person
        targets       what is under way
        progress      share of the download that is here, 0 to 1; null outside of downloads
        last_refusal  model, version, target, phase, reason, detail, at (UTC); null without one
        twin_refused  reason, detail, at (UTC) of a desired twin that cannot be read; null otherwise
        paused        whether the operator paused updates
        window        open: whether versions may be switched now; opens_at: local time or null
        """
        opens_at = self._orders.opens_at
        activity = self._reporter.activity()
        downloading = activity["phase"] == "downloading" and self._share_done is not None
        return {
            **activity,
            "progress": self._share_done() if downloading and self._share_done else None,
            "twin_refused": self._unread.status(),
            "paused": self._orders.paused,
            "window": {
                "open": opens_at is None,
                "opens_at": None if opens_at is None else opens_at.isoformat(timespec="minutes"),
            },
        }

    def run(self) -> None:
        """Body of the thread: apply the desired twin whenever it changes, until `stop`."""
        failures = 0
        while not self._orders.stopping.is_set():
            try:
                with self._turn:
                    self._unread.settle()
                    self.finish_probations()
                    desired = self._orders.desired
                    settled = desired is None or self.apply(desired)
            except Exception:
                log.exception("update.failed_unexpectedly")
                settled = False
            failures = 0 if settled else failures + 1
            self._woken.wait(self._pause_s(failures))
            self._woken.clear()

    # ── at start ─────────────────────────────────────────────────────────────────────────────────

    def restore(self) -> list[Installed]:
        """Bring back what was served before the last stop; needs no network, and no room on disk.

        Returns:
            What is served now.
        """
        served = self._passes.restore()
        if self._trials is not None:
            self._trials.restore()
        return served

    def finish_probations(self) -> None:
        """Finish probations that a restart or an error interrupted."""
        self._passes.finish_probations()
        if self._trials is not None:
            self._trials.finish_probations()

    # ── one pass ─────────────────────────────────────────────────────────────────────────────────

    def apply(self, desired: Desired) -> bool:
        """Install what `desired` hints at; blocks through downloads and probations.

        Returns:
            Whether every model is settled; False asks for a retry later.
        """
        if self._orders.desired is None:
            self._orders.desired = desired
        self._reporter.forget_others({*desired.models, *desired.trials})
        settled = True
        for unit in units(desired):
            if self._orders.stopping.is_set():
                return False
            settled &= self._passes.update(Attempt(unit, self._source, self._reporter, self._clock))
        settled &= self._try_beside(desired)
        settled &= self._reporter.send_again()
        if settled:
            self._tidy()
        return settled

    def install_from(self, source: Source) -> list[UpdateReport]:
        """Install what another source than the control plane has for this device, now.

        Blocks through probations.  It interrupts a download under way, and waits for a probation.
        Pauses and windows do not count: whoever asks stands beside the device.  What failed before
        is tried again.

        Returns:
            One report for each model that the source names: how its assignment ended, or how far
            it got with the reason why it waits.

        Raises:
            UpdateError: the source cannot be trusted, now or ever.
        """
        self._orders.by_hand.set()
        with self._turn:
            self._orders.by_hand.clear()
            self.finish_probations()
            desired = source.desired()
            for model, want in desired.models.items():
                self._journal.reopen(model, want.target, healthy=False)
            reports: list[UpdateReport] = []
            for unit in units(desired):
                attempt = Attempt(unit, source, self._reporter, self._clock, by_hand=True)
                self._passes.update(attempt)
                reports += (
                    self._journal.outcome(model, want.generation, want.target)
                    or attempt.newest(model)
                    for model, want in unit.wants.items()
                )
            self._reporter.send_again()
        self._woken.set()
        return reports

    def _try_beside(self, desired: Desired) -> bool:
        """What is to be tried; whether every trial is settled."""
        if self._trials is None:
            return True
        self._trials.drop_others(desired)
        settled = True
        for unit in trials(desired):
            if self._orders.stopping.is_set():
                return False
            attempt = Attempt(unit, self._source, self._reporter, self._clock)
            settled &= self._trials.update(attempt)
        return settled

    def _tried(self, slot: Path, interrupted: Callable[[], bool]) -> SelfTestResult:
        if self._selftest is not None:
            return self._selftest(slot)
        return run_selftest(slot, memory_mib=self._selftest_memory_mib, interrupted=interrupted)

    def _pause_s(self, failures: int) -> float | None:
        """How long to sleep before the next pass; None until something happens."""
        if not failures:
            return None
        pause_s = RETRY_PAUSES_S[min(failures, len(RETRY_PAUSES_S)) - 1] * random.uniform(0.8, 1.2)
        opens_in_s = self._orders.opens_in_s
        return pause_s if opens_in_s is None else min(pause_s, opens_in_s + 0.1)


def open_updater(
    directory: Path,
    *,
    trust: Trust,
    fetch: Fetch,
    chunks: ChunkPort,
    activate: Activate,
    report: Report,
    health: Health,
    event: Event = lambda name, fields: None,
    deactivate: Deactivate | None = None,
    activate_all: ActivateAll | None = None,
    selftest: SelfTest | None = None,
    selftest_memory_mib: int | None = None,
    recheck: Recheck | None = None,
    windows: Sequence[Window] = (),
    quota_mib: int = 0,
    memory_mib: int = 256,
    pace: Pace | None = None,
    beside: Beside | None = None,
) -> tuple[Updater, SlotStore]:
    """An updater on one directory of the device, and its store.

    Args:
        directory: holds slots, partial downloads and the journal.
        fetch: gets `chunks/SHA256`, the chunk lists.
        chunks: where chunks are asked for and arrive.
        selftest_memory_mib: what a self-test may take; None is its share of the device's memory.
        quota_mib: most that versions and downloads take on the disk; 0 leaves it to the disk.
        memory_mib: what decoding may use.
        pace: how hard downloads press on the line.
    """
    store = SlotStore(directory, quota_bytes=quota_mib << 20)
    for model in store.models():
        if (current := store.current(model)) is not None:
            trust.remember(model, current.counter)
    downloads = directory / "downloads"
    transfer = Transfer(chunks, downloads, pace=pace)
    installer = Installer(store, transfer, fetch, downloads, memory_bytes=memory_mib << 20)

    def tidy() -> None:
        store.tidy()
        installer.tidy()

    updater = Updater(
        store=store,
        trust=trust,
        obtain=installer,
        journal=Journal(directory / "journal.sqlite"),
        activate=activate,
        report=report,
        health=health,
        event=event,
        deactivate=deactivate,
        activate_all=activate_all,
        selftest=selftest,
        selftest_memory_mib=selftest_memory_mib,
        recheck=recheck,
        windows=windows,
        share_done=lambda: _share(transfer.progress),
        tidy=tidy,
        beside=beside,
    )
    return updater, store


def _share(progress: tuple[int, int] | None) -> float | None:
    if progress is None:
        return None
    done, whole = progress
    return round(done / whole, 3) if whole else 1.0
