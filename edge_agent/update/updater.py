"""One thread that brings a device to its desired versions, and back when they misbehave.

verify metadata → download → decode → stage → self-test → switch → probation → commit or revert.

Rules:
    * The desired twin is a hint; what is installed is what both signed repositories name.
    * The version that serves goes on serving until its successor passed the self-test, and comes
      back when the successor fails its probation.
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
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from edge_agent.update.attempt import Attempt, Source, disk_reason, end_of
from edge_agent.update.errors import (
    Failed,
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
from edge_agent.update.groups import Unit, require_whole, unit_of, units
from edge_agent.update.health import Unhealthy
from edge_agent.update.install import Installer, Obtain
from edge_agent.update.journal import Journal
from edge_agent.update.ports import Activate, ChunkPort, Clock, Deactivate, Fetch, Health, Report
from edge_agent.update.reports import Reporter, report_of_installed
from edge_agent.update.selftest import SelfTestResult, run_selftest
from edge_agent.update.serving import ActivateAll, Serving
from edge_agent.update.store import Installed, SlotStore, Switch
from edge_agent.update.transfer import Transfer
from edge_agent.update.trust import Assigned, Trust
from edge_agent.update.watch import Recheck, Watch
from edge_agent.update.windows import Window, is_open, next_opening
from edge_agent.wire.messages import Desired, Phase, UpdateReport

log = logging.getLogger("skerry.update")

RETRY_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses between retries; the last one repeats.  Each is jittered by ±20 %."""
RETRY_CAPS: Final[dict[type[NotYet], int]] = {
    NotAssigned: 6,
    IncompleteGroup: 6,
    TransferStalled: 10,
}
"""Tries after which these become final."""

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
        activate_all: ActivateAll | None = None,
        selftest: SelfTest | None = None,
        recheck: Recheck | None = None,
        clock: Clock = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        windows: Sequence[Window] = (),
        now: Callable[[], datetime] = datetime.now,
        share_done: Callable[[], float | None] | None = None,
    ) -> None:
        """
        Args:
            obtain: turns a verified assignment into a staged slot.
            activate: serves the bundle in a directory under a model's name; raises if it cannot.
            report: journals a report for the control plane.
            health: serving figures of a model since the last call by this updater.
            deactivate: stops serving a model whose first version failed.
            activate_all: `activate` of a group, so that its versions change at the same time;
                raises if one cannot.  Without it they change one after the other.
            selftest: tries a staged bundle; None is the real one, which an interruption ends.
            recheck: has a model answer its golden inputs once more at the end of its probation.
            clock: monotonic seconds.
            wait: pauses for some seconds, True when stopping; defaults to an interruptible sleep.
            windows: when versions may be switched; empty is always.
            now: local time without a zone, for the windows.
            share_done: how much of the download under way is here, 0 to 1, for `status`.
        """
        self._store = store
        self._source = Source(trust, obtain)
        self._trust = trust
        self._journal = journal
        self._report_out = report
        self._health = health
        self._selftest = selftest
        self._clock = clock
        self._windows = tuple(windows)
        self._now = now
        self._share_done = share_done
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._wait = wait or self._stopping.wait
        self._desired: Desired | None = None
        self._tries: dict[tuple[object, str], int] = {}
        self._said: set[tuple[object, str]] = set()
        self._ready: set[object] = set()  # units that wait for a window only
        self._paused = journal.paused
        self._by_hand = threading.Event()  # somebody waits to install by hand
        self._turn = threading.RLock()  # one pass at a time, on whichever thread
        self._reporter = Reporter(journal, lambda made: self._report_out(made))
        self._serving = Serving(store, journal, activate, deactivate, activate_all)
        self._watch = Watch(
            lambda model: self._health(model), clock, lambda seconds: self._wait(seconds), recheck
        )

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

    @property
    def paused(self) -> bool:
        """Whether the device's operator paused updates."""
        return self._paused

    def pause(self) -> None:
        """Begin no update any more until `resume`, over restarts too.  Idempotent.

        A download under way stops and keeps what it has; a probation goes on to its verdict.

        Raises:
            sqlite3.Error: it cannot be remembered; nothing changed.
        """
        self._journal.set_paused(True)
        self._paused = True
        log.warning("update.paused")
        self._woken.set()

    def resume(self) -> None:
        """End a pause.  Idempotent.

        Raises:
            sqlite3.Error: it cannot be remembered; nothing changed.
        """
        self._journal.set_paused(False)
        self._paused = False
        log.info("update.resumed")
        self._said = {said for said in self._said if said[1] != Paused.reason}
        self._woken.set()

    def status(self) -> dict[str, JsonValue]:
        """What goes on, as JSON: the `update` block of `/status`.

        phase         of the update under way, "idle" without one
        reason        why it waits, a slug as in reports; empty when it does not
        detail        the same for a person
        targets       what is under way
        progress      share of the download that is here, 0 to 1; null outside of downloads
        last_refusal  model, version, target, phase, reason, detail, at (UTC); null without one
        paused        whether the operator paused updates
        window        open: whether versions may be switched now; opens_at: local time or null
        """
        opens_at = next_opening(self._windows, self._now())
        activity = self._reporter.activity()
        downloading = activity["phase"] == "downloading" and self._share_done is not None
        return {
            **activity,
            "progress": self._share_done() if downloading and self._share_done else None,
            "paused": self._paused,
            "window": {
                "open": opens_at is None,
                "opens_at": None if opens_at is None else opens_at.isoformat(timespec="minutes"),
            },
        }

    def run(self) -> None:
        """Body of the thread: apply the desired twin whenever it changes, until `stop`."""
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._turn:
                    self.finish_probations()
                    desired = self._desired
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
        try:
            abandoned = [each.abandoned for each in self._store.recover()]
            self._reporter.settle([_crashed(each) for each in abandoned])
            self._reporter.send_again()
        except Exception:
            # a disk that takes no writes is no reason to stop serving
            log.exception("update.not_recovered")
        for model in self._store.models():
            if (failure := self._serving.serve(model)) is not None:
                self._abandon(failure.unit, model, "activation_failed", failure.detail)
        return self._serving.served()

    def finish_probations(self) -> None:
        """Finish probations that a restart or an error interrupted."""
        for model in self._store.models():
            if unit := self._store.unit(model):
                self._probe(unit, self._clock())

    # ── one pass ─────────────────────────────────────────────────────────────────────────────────

    def apply(self, desired: Desired) -> bool:
        """Install what `desired` hints at; blocks through downloads and probations.

        Returns:
            Whether every model is settled; False asks for a retry later.
        """
        if self._desired is None:
            self._desired = desired
        settled = True
        for unit in units(desired):
            if self._stopping.is_set():
                return False
            settled &= self._update(Attempt(unit, self._source, self._reporter, self._clock))
        return self._reporter.send_again() and settled

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
        self._by_hand.set()
        with self._turn:
            self._by_hand.clear()
            self.finish_probations()
            desired = source.desired()
            for model, want in desired.models.items():
                self._journal.reopen(model, want.target, healthy=False)
            reports: list[UpdateReport] = []
            for unit in units(desired):
                attempt = Attempt(unit, source, self._reporter, self._clock, by_hand=True)
                self._update(attempt)
                reports += (
                    self._journal.outcome(model, want.generation, want.target)
                    or attempt.newest(model)
                    for model, want in unit.wants.items()
                )
            self._reporter.send_again()
        self._woken.set()
        return reports

    def _update(self, attempt: Attempt) -> bool:
        """One try of one unit; whether it is settled."""
        outcomes = {
            model: self._journal.outcome(model, want.generation, want.target)
            for model, want in attempt.unit.wants.items()
        }
        attempt.leave_out([model for model, outcome in outcomes.items() if outcome is not None])
        if not attempt.wants:
            return True
        try:
            for model, outcome in outcomes.items():
                if outcome is not None and outcome.phase != "healthy":
                    attempt.blame = model
                    raise Failed(f"{model} ended as {outcome.phase} before", "group_failed")
            if all(self._has(model, want.target) for model, want in attempt.wants.items()):
                attempt.settle("healthy")
            elif attempt.awaits_probation(self._store):
                self._probe(self._store.unit(min(attempt.wants)), attempt.started_at)
            else:
                self._install(attempt)
        except NotYet as error:
            return self._not_yet(attempt, error)
        except Exception as error:
            if self._stopping.is_set():
                return False  # what it needs may be closed already; the next start tries again
            return self._failed(attempt, error)
        return True

    def _has(self, model: str, target: str) -> bool:
        """Whether `target` is committed and serves."""
        current = self._store.current(model)
        return (
            current is not None
            and not current.pending
            and current.target == target
            and not self._serving.fails(model)
        )

    def _install(self, attempt: Attempt) -> None:
        if self._paused and not attempt.by_hand:
            raise Paused("updates are paused on this device")
        window_closed = not attempt.by_hand and not is_open(self._windows, self._now())
        if window_closed and attempt.unit.key in self._ready:
            raise self._outside_window()  # all else is done, and costs the line nothing again
        for model in attempt.wants:
            if unit := self._store.unit(model):
                self._probe(unit, attempt.started_at)  # else it would be torn apart
        assigned = self._verify(attempt)
        for model, each in assigned.items():
            attempt.blame = model
            slot = attempt.source.obtain(
                each,
                attempt.progress(model),
                lambda: self._interrupted(attempt),
            )
            attempt.staged[model] = each.sha256
            self._try(slot, attempt)
        attempt.blame = None
        if self._interrupted(attempt):
            raise Interrupted("superseded before the switch")
        if not attempt.by_hand and not is_open(self._windows, self._now()):
            self._ready.add(attempt.unit.key)
            raise self._outside_window()
        self._switch(attempt, assigned)

    def _verify(self, attempt: Attempt) -> dict[str, Assigned]:
        """What both repositories say of every release that is to be installed."""
        trust = attempt.source.trust
        trust.refresh()
        signed_groups: dict[str, str | None] = {}
        assigned: dict[str, Assigned] = {}
        for model, want in attempt.unit.wants.items():
            attempt.blame = model
            one = trust.verify(want.target)
            if one.release.model != model:
                raise Refused(f"{want.target} is not a release of {model}", "wrong_profile")
            signed_groups[want.target] = one.group
            if model in attempt.wants and not self._has(model, want.target):
                assigned[model] = one
        attempt.blame = None
        group = attempt.unit.group
        require_whole(attempt.unit, signed_groups, trust.members(group) if group else ())
        return assigned

    def _try(self, slot: Path, attempt: Attempt) -> None:
        result = (
            run_selftest(slot, interrupted=lambda: self._interrupted(attempt))
            if self._selftest is None
            else self._selftest(slot)
        )
        if self._interrupted(attempt):
            raise Interrupted("superseded in the self-test")
        if not result.ok:
            raise Failed(result.detail, "selftest_failed")

    def _switch(self, attempt: Attempt, assigned: Mapping[str, Assigned]) -> None:
        for model in assigned:
            attempt.report("activating", model)
        trust = attempt.source.trust
        for each in assigned.values():
            trust.accept(each.release)
        switches = [
            Switch(
                each.sha256,
                each.release,
                each.target,
                attempt.wants[model].generation,
                attempt.wants[model].rollout,
                each.probation_s,
            )
            for model, each in assigned.items()
        ]
        unit = self._store.switch_group(switches)
        attempt.staged.clear()
        failure = self._serving.change(unit)
        if failure is not None:
            model, detail = failure
            self._abandon(unit, model, "activation_failed", detail, attempt.started_at)
            return
        for model in assigned:
            attempt.report("probation", model)
        self._probe(unit, attempt.started_at)
        if kept := [model for model in attempt.wants if model not in assigned]:
            attempt.settle("healthy", models=kept)  # of the group, but here before it

    # ── probation ────────────────────────────────────────────────────────────────────────────────

    def _probe(self, unit: Sequence[Installed], started_at: float) -> None:
        """Watch a pending unit; commit it, or go back.  Leaves it pending when stopping."""
        try:
            verdict = self._watch.verdict(unit)
        except Interrupted:
            return
        except Exception as error:
            log.exception("update.probation_failed model=%s", unit[0].model)
            detail = f"{type(error).__name__}: {error}"
            verdict = unit[0].model, Unhealthy("internal_error", detail)
        if verdict is not None:
            model, unhealthy = verdict
            self._abandon(unit, model, unhealthy.reason, unhealthy.detail, started_at)
            return
        self._store.commit(unit[0].model)
        elapsed_s = self._clock() - started_at
        for each in unit:
            log.info("model.committed model=%s version=%d", each.model, each.version)
        self._reporter.settle(
            [report_of_installed(each, "healthy", elapsed_s=elapsed_s) for each in unit]
        )

    def _abandon(
        self,
        unit: Sequence[Installed],
        blame: str,
        reason: str,
        detail: str,
        started_at: float | None = None,
    ) -> None:
        """Back to the versions before, all of a unit; `blame` is the model whose fault it is."""
        try:
            self._store.revert(unit[0].model)
        except OSError as error:
            # the database has reverted; the next start mends the link
            log.error("update.link_not_reverted model=%s error=%s", unit[0].model, error)
        elapsed_s = 0.0 if started_at is None else self._clock() - started_at
        reports = []
        for each in unit:
            why = end_of(each.model, blame, reason, detail)
            log.warning(
                "model.reverted model=%s version=%d reason=%s", each.model, each.version, why[0]
            )
            self._serving.back(each.model)
            reports.append(report_of_installed(each, "rolled_back", *why, elapsed_s))
        self._reporter.settle(reports)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    def _interrupted(self, attempt: Attempt) -> bool:
        """Whether an attempt must not go on to its switch."""
        if self._stopping.is_set():
            return True
        if not attempt.by_hand and (self._paused or self._by_hand.is_set()):
            return True
        return bool(self._superseded(attempt)) or self._regrouped(attempt.unit)

    def _superseded(self, attempt: Attempt) -> dict[str, Phase]:
        """Phases that a newer twin puts wanted models into; without those that stand."""
        phases: dict[str, Phase] = {}
        for model, want in attempt.wants.items():
            newest = self._desired.models.get(model) if self._desired is not None else None
            if attempt.by_hand:
                if newest is not None and newest.generation > want.generation:
                    phases[model] = "superseded"
            elif newest is None:
                phases[model] = "cancelled"
            elif (newest.generation, newest.target) != (want.generation, want.target):
                phases[model] = "superseded"
        return phases

    def _regrouped(self, unit: Unit) -> bool:
        if unit.group is None:
            return False
        newest = unit_of(self._desired, min(unit.wants))
        return newest is not None and newest.key != unit.key

    def _not_yet(self, attempt: Attempt, error: NotYet) -> bool:
        """Whether the attempt is settled: superseded, or tried too often."""
        if isinstance(error, Interrupted):
            if self._stopping.is_set():
                return False
            superseded = self._superseded(attempt)
            for model, ended in superseded.items():
                attempt.settle(ended, models=[model])
            if superseded or attempt.by_hand or not self._paused:
                return len(superseded) == len(attempt.wants)
            error = Paused("updates are paused on this device")
        key = (attempt.unit.key, error.reason)
        cap = RETRY_CAPS.get(type(error))
        if cap is not None and not attempt.by_hand:
            self._tries[key] = self._tries.get(key, 0) + 1
            if self._tries[key] >= cap:
                phase: Phase = "failed" if isinstance(error, TransferStalled) else "rejected"
                self._end(attempt, phase, error.reason, str(error))
                return True
        phase = "staged" if isinstance(error, OutsideWindow) else "downloading"
        said = key in self._said
        if not said:
            self._said.add(key)
            log.warning(
                "update.waiting model=%s reason=%s: %s", min(attempt.wants), error.reason, error
            )
        for model in attempt.wants:
            attempt.report(phase, model, error.reason, str(error), aloud=not said)
        return False

    def _failed(self, attempt: Attempt, error: Exception) -> bool:
        """End an attempt that raised; False when it is to be resumed instead."""
        if isinstance(error, UpdateError):
            phase: Phase = "rejected" if isinstance(error, Refused) else "failed"
            self._end(attempt, phase, error.reason, str(error))
        elif (reason := disk_reason(error)) is not None:
            self._end(attempt, "failed", reason, str(error))
        else:
            targets = ", ".join(want.target for want in attempt.wants.values())
            log.error(
                "update.failed_unexpectedly model=%s target=%s",
                min(attempt.wants),
                targets,
                exc_info=error,
            )
            if attempt.awaits_probation(self._store):
                return False  # it is switched to, so its probation has the last word
            self._end(attempt, "failed", "internal_error", f"{type(error).__name__}: {error}")
        return True

    def _end(self, attempt: Attempt, phase: Phase, reason: str, detail: str) -> None:
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

    def _outside_window(self) -> OutsideWindow:
        opens_at = next_opening(self._windows, self._now())
        when = "soon" if opens_at is None else opens_at.isoformat(" ", "minutes")
        return OutsideWindow(f"ready; versions may be switched from {when} on")

    def _pause_s(self, failures: int) -> float | None:
        """How long to sleep before the next pass; None until something happens."""
        if not failures:
            return None
        pause_s = RETRY_PAUSES_S[min(failures, len(RETRY_PAUSES_S)) - 1] * random.uniform(0.8, 1.2)
        now = self._now()
        opens_at = next_opening(self._windows, now)
        if opens_at is None:
            return pause_s
        return min(pause_s, max((opens_at - now).total_seconds(), 0.1))


def _crashed(installed: Installed) -> UpdateReport:
    detail = f"{installed.tries + 1} starts without passing probation"
    return report_of_installed(installed, "rolled_back", "crashed", detail)


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
    activate_all: ActivateAll | None = None,
    selftest: SelfTest | None = None,
    recheck: Recheck | None = None,
    windows: Sequence[Window] = (),
    quota_mib: int = 0,
    memory_mib: int = 256,
) -> tuple[Updater, SlotStore]:
    """An updater on one directory of the device, and its store.

    Args:
        directory: holds slots, partial downloads and the journal.
        fetch: gets `chunks/SHA256`, the chunk lists.
        chunks: where chunks are asked for and arrive.
        quota_mib: most that versions and downloads take on the disk; 0 leaves it to the disk.
        memory_mib: what decoding may use.
    """
    store = SlotStore(directory, quota_bytes=quota_mib << 20)
    downloads = directory / "downloads"
    installer = Installer(
        store, Transfer(chunks, downloads), fetch, downloads, memory_bytes=memory_mib << 20
    )
    updater = Updater(
        store=store,
        trust=trust,
        obtain=installer,
        journal=Journal(directory / "journal.sqlite"),
        activate=activate,
        report=report,
        health=health,
        deactivate=deactivate,
        activate_all=activate_all,
        selftest=selftest,
        recheck=recheck,
        windows=windows,
    )
    return updater, store
