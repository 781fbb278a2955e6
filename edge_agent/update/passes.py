"""One pass over a unit: from what is wanted to how it ended.

Every step of a unit is made for all its models before the next one is: verify, obtain, self-test,
switch, probation, commit or revert.  Returns whether the unit is settled; raises only what the disk
refuses to remember.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge_agent.update.attempt import Attempt, end_of
from edge_agent.update.ends import Ends, log_unexpected
from edge_agent.update.errors import (
    Failed,
    Interrupted,
    NotYet,
    Paused,
    Refused,
    UpdateError,
)
from edge_agent.update.groups import require_whole
from edge_agent.update.health import Unhealthy
from edge_agent.update.journal import Journal
from edge_agent.update.orders import Orders
from edge_agent.update.ports import Clock
from edge_agent.update.reports import Reporter, report_of_installed
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.serving import Serving
from edge_agent.update.store import Installed, Reverted, SlotStore, Switch
from edge_agent.update.trust import Assigned
from edge_agent.update.watch import Watch
from edge_agent.wire.messages import UpdateReport

log = logging.getLogger("skerry.update")

SelfTest = Callable[[Path, Callable[[], bool]], SelfTestResult]
"""Tries a staged bundle; the callable says when to leave off."""


class Passes:
    """See the module.  For one thread at a time."""

    def __init__(
        self,
        *,
        store: SlotStore,
        journal: Journal,
        reporter: Reporter,
        orders: Orders,
        serving: Serving,
        watch: Watch,
        selftest: SelfTest,
        clock: Clock,
    ) -> None:
        """
        Args:
            clock: monotonic seconds.
        """
        self._store = store
        self._journal = journal
        self._reporter = reporter
        self._orders = orders
        self._serving = serving
        self._watch = watch
        self._selftest = selftest
        self._clock = clock
        self._ends = Ends(store, orders)
        self._ready: set[object] = set()  # units that wait for a window only
        self._condemned: dict[object, tuple[str, Unhealthy]] = {}
        """Pending units that failed, while the disk does not let the store go back."""

    def restore(self) -> list[Installed]:
        """Bring back what was served before the last stop; needs no network, and no room on disk.

        Returns:
            What is served now.
        """
        try:
            self._reporter.settle([_given_up(each) for each in self._store.recover()])
            self._reporter.send_again()
        except Exception:
            # a disk that takes no writes is no reason to stop serving
            log.exception("update.not_recovered")
        for model in self._store.models():
            if (failure := self._serving.serve(model)) is not None:
                try:
                    self._abandon(failure.unit, model, "activation_failed", failure.detail)
                except Exception:
                    log.exception("update.not_recovered")
        return self._serving.served()

    def finish_probations(self) -> None:
        """Finish probations that a restart or an error interrupted."""
        for model in self._store.models():
            if unit := self._store.unit(model):
                self._probe(unit, self._clock())

    def update(self, attempt: Attempt) -> bool:
        """One try of one unit; whether it is settled."""
        outcomes = {
            model: self._journal.outcome(model, want.generation, want.target)
            for model, want in attempt.unit.wants.items()
        }
        for model, outcome in outcomes.items():
            if outcome is not None and self._lost(outcome):
                self._journal.reopen(model, outcome.target, healthy=True)
                outcomes[model] = None
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
            return self._ends.not_yet(attempt, error)
        except Exception as error:
            if self._orders.stopping.is_set():
                return False  # what it needs may be closed already; the next start tries again
            if not isinstance(error, UpdateError) and self._is_switched(attempt):
                log_unexpected(attempt, error)
                return False
            return self._ends.failed(attempt, error)
        return True

    def _is_switched(self, attempt: Attempt) -> bool:
        """Whether the probation has the last word, or the disk refused only after the commit."""
        return attempt.awaits_probation(self._store) or all(
            self._has(model, want.target) for model, want in attempt.wants.items()
        )

    def _has(self, model: str, target: str) -> bool:
        """Whether `target` is committed and serves."""
        current = self._store.current(model)
        return (
            current is not None
            and not current.pending
            and current.target == target
            and not self._serving.fails(model)
        )

    def _lost(self, outcome: UpdateReport) -> bool:
        """Whether what ended well is not here any more, and nothing newer is.

        The disk took the slot, or the database that knew which release is in it.
        """
        current = self._store.current(outcome.model)
        return outcome.phase == "healthy" and (current is None or current.counter < outcome.counter)

    def _install(self, attempt: Attempt) -> None:
        if self._orders.paused and not attempt.by_hand:
            raise Paused("updates are paused on this device")
        window_closed = not attempt.by_hand and self._orders.opens_at is not None
        if window_closed and attempt.unit.key in self._ready:
            # all else is done, and costs the line nothing again
            raise self._orders.outside_window()
        for model in attempt.wants:
            if unit := self._store.unit(model):
                self._probe(unit, attempt.started_at)  # else it would be torn apart
        assigned = self._verify(attempt)
        for model, each in assigned.items():
            attempt.blame = model
            slot = attempt.source.obtain(
                each,
                attempt.progress(model),
                lambda: self._orders.interrupted(attempt),
            )
            attempt.staged[model] = each.sha256
            self._try(slot, attempt)
        attempt.blame = None
        if self._orders.interrupted(attempt):
            raise Interrupted("superseded before the switch")
        if not attempt.by_hand and self._orders.opens_at is not None:
            self._ready.add(attempt.unit.key)
            raise self._orders.outside_window()
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
        result = self._selftest(slot, lambda: self._orders.interrupted(attempt))
        if self._orders.interrupted(attempt):
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
            verdict = self._verdict(unit)
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

    def _verdict(self, unit: Sequence[Installed]) -> tuple[str, Unhealthy] | None:
        """As `Watch.verdict`, of what certainly serves; what failed once is not tried again."""
        if (condemned := self._condemned.get(_key(unit))) is not None:
            return condemned
        if (failure := self._serving.ensure(unit)) is not None:
            model, detail = failure
            return model, Unhealthy("activation_failed", detail)
        return self._watch.verdict(unit)

    def _abandon(
        self,
        unit: Sequence[Installed],
        blame: str,
        reason: str,
        detail: str,
        started_at: float | None = None,
    ) -> None:
        """Back to the versions before, all of a unit; `blame` is the model whose fault it is.

        Raises:
            sqlite3.Error: the versions before serve, but the store has not gone back: it is to be
                asked again.
        """
        self._condemned[_key(unit)] = blame, Unhealthy(reason, detail)
        try:
            self._store.revert(unit[0].model)
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and self._store.unit(unit[0].model):
                for each in unit:
                    self._serving.before(each.model)
                raise
            # the database has reverted, be it that the disk refused only after its commit; the
            # next start mends the link
            log.error("update.link_not_reverted model=%s error=%s", unit[0].model, error)
        del self._condemned[_key(unit)]
        elapsed_s = 0.0 if started_at is None else self._clock() - started_at
        reports = []
        for each in unit:
            why = end_of(each.model, blame, reason, detail)
            log.warning(
                "model.reverted model=%s version=%d reason=%s: %s", each.model, each.version, *why
            )
            self._serving.back(each.model)
            reports.append(report_of_installed(each, "rolled_back", *why, elapsed_s))
        self._reporter.settle(reports)


def _key(unit: Sequence[Installed]) -> object:
    """Tells pending units apart."""
    return tuple(sorted((each.model, each.sha256, each.generation) for each in unit))


def _given_up(reverted: Reverted) -> UpdateReport:
    """Logs it, and makes its report."""
    abandoned = reverted.abandoned
    if reverted.lost:
        reason, detail = "io_error", f"the disk lost the slot of {reverted.lost}"
    else:
        reason, detail = "crashed", f"{abandoned.tries + 1} starts without passing probation"
    why = end_of(abandoned.model, reverted.lost or None, reason, detail)
    log.warning(
        "model.reverted model=%s version=%d reason=%s: %s", abandoned.model, abandoned.version, *why
    )
    return report_of_installed(abandoned, "rolled_back", *why)
