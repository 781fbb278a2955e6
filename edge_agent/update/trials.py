"""A version beside the one that serves: brought here, proven, kept, changed and dropped.

verify → obtain → self-test → place → probation on its own figures → commit, or drop.

Rules:
    * The twin only hints: release, mode and share are those that the director signed for a trial.
      Taking a trial away needs no signature, for the version that serves is the proven one.
    * The version that serves is never touched here.  A challenger that fails in any way is dropped.
    * The counter of a challenger raises no mark: that of the version that serves stays acceptable.
      Promoting it is an ordinary update, which finds its slot and itself loaded.
    * It is in the store before it is loaded, and survives restarts; starts are counted while it is
      on probation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from edge_agent.update.attempt import Attempt
from edge_agent.update.ends import Ends
from edge_agent.update.errors import (
    Failed,
    Interrupted,
    NotYet,
    OnProbation,
    Paused,
    Refused,
    UpdateError,
)
from edge_agent.update.health import Unhealthy
from edge_agent.update.journal import Journal
from edge_agent.update.orders import Orders
from edge_agent.update.ports import Beside, Clock
from edge_agent.update.reports import Reporter, report_of_installed
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.store import Challenger, SlotStore, Switch
from edge_agent.update.trust import AssignedTrial
from edge_agent.update.watch import Watch
from edge_agent.wire.messages import SHARE_PPM, Desired, DesiredTrial

log = logging.getLogger("skerry.update")

SelfTest = Callable[[Path, Callable[[], bool]], SelfTestResult]


class Trials:
    """See the module.  For one thread at a time."""

    def __init__(
        self,
        *,
        store: SlotStore,
        journal: Journal,
        reporter: Reporter,
        orders: Orders,
        beside: Beside,
        watch: Watch,
        selftest: SelfTest,
        clock: Clock,
    ) -> None:
        """
        Args:
            beside: where versions are tried.
            watch: of what is tried, by the model's name.
            clock: monotonic seconds.
        """
        self._store = store
        self._journal = journal
        self._reporter = reporter
        self._orders = orders
        self._beside = beside
        self._watch = watch
        self._selftest = selftest
        self._clock = clock
        self._ends = Ends(store, orders)
        self._ready: set[object] = set()  # units that wait for a window only

    def restore(self) -> None:
        """Try again what was tried before the last stop; needs no network."""
        for challenger in self._store.challengers():
            tried = challenger.installed
            try:
                self._begin(challenger)
            except Exception as error:
                log.error("trial.not_restored model=%s error=%s", tried.model, error)
                try:
                    if tried.pending:
                        self._abandon(challenger, *_why(error))
                    else:  # the next pass mends it, or says why it cannot
                        self._journal.reopen(tried.model, tried.target, healthy=True)
                except Exception:
                    # a disk that takes no writes is no reason to stop serving
                    log.exception("update.not_recovered")

    def finish_probations(self) -> None:
        """Finish probations that a restart or an error interrupted."""
        for challenger in self._store.challengers():
            if challenger.installed.pending:
                self._probe(challenger, self._clock())

    def drop_others(self, desired: Desired) -> None:
        """Drop what the twin does not want to be tried any more.

        What is about to be promoted stays until that has ended: its slot is needed, and it answers.
        """
        for challenger in self._store.challengers():
            tried = challenger.installed
            if tried.model in desired.trials:
                continue
            want = desired.models.get(tried.model)
            if (
                want is not None
                and want.target == tried.target
                and self._journal.outcome(tried.model, want.generation, want.target) is None
            ):
                continue
            self._store.drop_challenger(tried.model)
            self._beside.end(tried.model)
            log.info("trial.dropped model=%s version=%d", tried.model, tried.version)

    def update(self, attempt: Attempt) -> bool:
        """One try of one trial; whether it is settled."""
        ((model, want),) = attempt.unit.wants.items()
        if not isinstance(want, DesiredTrial):
            raise TypeError(f"{model} is not wanted for a trial")
        here = self._store.challenger(model)
        if here is not None and not _is(here, want):
            here = None
        outcome = self._journal.outcome(model, want.generation, want.target)
        if outcome is not None and outcome.phase == "healthy" and here is None:
            self._journal.reopen(model, want.target, healthy=True)
            outcome = None
        try:
            if outcome is not None:
                return outcome.phase != "healthy" or here is None or self._adjust(attempt, here)
            if here is not None and here.installed.pending:
                self._probe(here, attempt.started_at)
            else:
                self._install(model, attempt)
        except NotYet as error:
            return self._ends.not_yet(attempt, error)
        except Exception as error:
            if self._orders.stopping.is_set():
                return False  # what it needs may be closed already; the next start tries again
            placed = self._store.challenger(model)
            if not isinstance(error, UpdateError) and placed is not None and _is(placed, want):
                log.exception("update.failed_unexpectedly model=%s", model)
                return False  # its probation has the last word
            return self._ends.failed(attempt, error)
        return True

    # ── installing ───────────────────────────────────────────────────────────────────────────────

    def _install(self, model: str, attempt: Attempt) -> None:
        if self._orders.paused:
            raise Paused("updates are paused on this device")
        if self._orders.opens_at is not None and attempt.unit.key in self._ready:
            raise self._orders.outside_window()
        champion = self._store.current(model)
        if champion is None:
            raise Failed(
                f"no version of {model} serves that it could be tried beside", "no_champion"
            )
        if champion.pending:
            raise OnProbation(f"the version of {model} that serves is on probation itself")
        attempt.blame = model
        trial = self._verify(model, attempt)
        if trial.assigned.sha256 == champion.sha256:
            raise Failed(f"{model} {champion.version} serves already", "same_version")
        slot = attempt.source.obtain(
            trial.assigned,
            attempt.progress(model),
            lambda: self._orders.interrupted(attempt),
        )
        attempt.staged[model] = trial.assigned.sha256
        result = self._selftest(slot, lambda: self._orders.interrupted(attempt))
        if self._orders.interrupted(attempt):
            raise Interrupted("superseded before the trial")
        if not result.ok:
            raise Failed(result.detail, "selftest_failed")
        if self._orders.opens_at is not None:
            self._ready.add(attempt.unit.key)
            raise self._orders.outside_window()
        self._place(model, attempt, trial)

    def _verify(self, model: str, attempt: Attempt) -> AssignedTrial:
        want, trust = attempt.wants[model], attempt.source.trust
        trust.refresh()
        trial = trust.verify_trial(want.target)
        if trial.assigned.release.model != model:
            raise Refused(f"{want.target} is not a release of {model}", "wrong_profile")
        return trial

    def _place(self, model: str, attempt: Attempt, trial: AssignedTrial) -> None:
        want, assigned = attempt.wants[model], trial.assigned
        attempt.report("activating", model)
        switch = Switch(
            assigned.sha256,
            assigned.release,
            assigned.target,
            want.generation,
            want.rollout,
            assigned.probation_s,
        )
        challenger = self._store.place(switch, trial.mode, trial.share_ppm)
        attempt.staged.clear()
        try:
            self._begin(challenger)
        except Exception as error:
            self._abandon(challenger, *_why(error), attempt.started_at)
            return
        attempt.report("probation", model)
        self._probe(challenger, attempt.started_at)

    def _begin(self, challenger: Challenger) -> None:
        tried = challenger.installed
        salt = f"{tried.target}@{tried.generation}"
        self._beside.begin(tried.model, tried.path, challenger.mode, challenger.share, salt)

    # ── probation ────────────────────────────────────────────────────────────────────────────────

    def _probe(self, challenger: Challenger, started_at: float) -> None:
        """Watch what is on probation; commit it, or drop it.  Leaves it pending when stopping."""
        tried = challenger.installed
        try:
            verdict = self._watch.verdict([tried])
        except Interrupted:
            return
        except Exception as error:
            log.exception("update.probation_failed model=%s", tried.model)
            detail = f"{type(error).__name__}: {error}"
            verdict = tried.model, Unhealthy("internal_error", detail)
        if verdict is not None:
            _, unhealthy = verdict
            self._abandon(challenger, unhealthy.reason, unhealthy.detail, started_at)
            return
        self._store.commit_challenger(tried.model)
        log.info("trial.committed model=%s version=%d", tried.model, tried.version)
        elapsed_s = self._clock() - started_at
        self._reporter.settle([report_of_installed(tried, "healthy", elapsed_s=elapsed_s)])

    def _abandon(
        self, challenger: Challenger, reason: str, detail: str, started_at: float | None = None
    ) -> None:
        """Nothing is tried any more; first what answers, then what is remembered."""
        tried = challenger.installed
        log.warning(
            "trial.abandoned model=%s version=%d reason=%s: %s",
            tried.model,
            tried.version,
            reason,
            detail,
        )
        self._beside.end(tried.model)
        self._store.drop_challenger(tried.model)
        elapsed_s = 0.0 if started_at is None else self._clock() - started_at
        self._reporter.settle(
            [report_of_installed(tried, "rolled_back", reason, detail, elapsed_s)]
        )

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def _adjust(self, attempt: Attempt, here: Challenger) -> bool:
        """Take over what the director signed, when the twin hints at another mode or share.

        Returns:
            False when that could not be found out yet.
        """
        ((model, want),) = attempt.unit.wants.items()
        if not isinstance(want, DesiredTrial):
            raise TypeError(f"{model} is not wanted for a trial")
        hint = want.mode, round(want.share * SHARE_PPM)
        if hint == (here.mode, here.share_ppm):
            return True
        try:
            trial = self._verify(model, attempt)
        except UpdateError as error:
            log.warning("trial.not_changed model=%s reason=%s: %s", model, error.reason, error)
            return not isinstance(error, NotYet)
        signed = trial.mode, trial.share_ppm
        if signed != hint:
            log.warning("trial.hint_not_signed model=%s hint=%s signed=%s", model, hint, signed)
        if signed != (here.mode, here.share_ppm):
            changed = self._store.set_trial(model, *signed)
            self._beside.change(model, changed.mode, changed.share)
        return True


def _is(challenger: Challenger, want: DesiredTrial) -> bool:
    tried = challenger.installed
    return (tried.target, tried.generation) == (want.target, want.generation)


def _why(error: Exception) -> tuple[str, str]:
    """Reason and detail of a version that cannot be tried."""
    reason = error.reason if isinstance(error, UpdateError) else "activation_failed"
    return reason, str(error) or type(error).__name__
