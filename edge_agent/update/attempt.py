"""One try of one unit: what is wanted, where it comes from, and what is said about it."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from edge_agent.update.groups import Unit
from edge_agent.update.install import Obtain, Progress
from edge_agent.update.ports import Clock
from edge_agent.update.reports import Reporter, report_of_want
from edge_agent.update.store import SlotStore
from edge_agent.update.trust import Assigned, Trust
from edge_agent.wire.messages import Desired, DesiredModel, Phase, UpdateReport


@dataclass(frozen=True, slots=True)
class Source:
    """Where releases come from: the control plane, or a medium with the same repositories."""

    trust: Trust
    obtain: Obtain

    def desired(self) -> Desired:
        """What the director of this source assigns, as a twin.

        Raises:
            UpdateError: a release must not run here, or nothing can be verified now.
        """
        return twin_of({each.release.model: each for each in self.trust.assigned()})


class Attempt:
    """See the module.  For one thread.

    Attributes:
        wants: assignments of the unit that have not ended.
        by_hand: asked for beside the device.
        staged: digests that this attempt staged, by model.
        blame: the model that is worked on, whose fault it is if something fails; None: of all.
    """

    def __init__(
        self,
        unit: Unit,
        source: Source,
        reporter: Reporter,
        clock: Clock,
        *,
        by_hand: bool = False,
    ) -> None:
        self.unit = unit
        self.source = source
        self.by_hand = by_hand
        self.wants: dict[str, DesiredModel] = dict(unit.wants)
        self.staged: dict[str, str] = {}
        self.blame: str | None = None
        self.started_at = clock()
        self._clock = clock
        self._reporter = reporter
        self._newest: dict[str, UpdateReport] = {}

    def leave_out(self, models: Iterable[str]) -> None:
        """These have ended already."""
        for model in models:
            del self.wants[model]

    def awaits_probation(self, store: SlotStore) -> bool:
        """Whether all that is wanted was switched to, and not yet judged."""
        for model, want in self.wants.items():
            current = store.current(model)
            if current is None or not current.pending:
                return False
            if (current.target, current.generation) != (want.target, want.generation):
                return False
        return True

    def progress(self, model: str) -> Progress:
        """Reports phases of `model`."""

        def report(phase: Phase, reason: str = "", detail: str = "") -> None:
            self.report(phase, model, reason, detail)

        return report

    def report(self, phase: Phase, model: str, reason: str = "", detail: str = "") -> None:
        """Report a step of `model`."""
        newest = self._newest.get(model)
        if not reason and newest is not None and newest.phase == phase:
            return  # the same step still; why it takes longer is not forgotten over that
        self._reporter.send(self._made(phase, model, reason, detail))

    def settle(
        self,
        phase: Phase,
        reason: str = "",
        detail: str = "",
        *,
        models: Collection[str] | None = None,
    ) -> None:
        """End the assignments of `models`, or of all that are wanted, at once."""
        self._reporter.settle(
            [
                self._made(phase, model, *end_of(model, self.blame, reason, detail))
                for model in self.wants
                if models is None or model in models
            ]
        )

    def newest(self, model: str) -> UpdateReport:
        """The newest report of `model`."""
        return self._newest.get(model) or report_of_want(model, self.unit.wants[model], "queued")

    def _made(self, phase: Phase, model: str, reason: str, detail: str) -> UpdateReport:
        elapsed_s = self._clock() - self.started_at
        made = report_of_want(model, self.unit.wants[model], phase, reason, detail, elapsed_s)
        self._newest[model] = made
        return made


def twin_of(
    assigned: Mapping[str, Assigned], rollouts: Mapping[str, str | None] | None = None
) -> Desired:
    """What is signed as a twin.

    Args:
        assigned: by model.
        rollouts: what brings it, by model; nobody signs that.
    """
    models = {
        model: DesiredModel(
            target=each.target,
            version=each.release.version,
            counter=each.release.counter,
            generation=each.generation,
            rollout=(rollouts or {}).get(model),
            probation_s=each.probation_s,
            group=each.group,
        )
        for model, each in assigned.items()
    }
    generations = (each.generation for each in assigned.values())
    return Desired(version=max(generations, default=0), models=models)


def end_of(model: str, blame: str | None, reason: str, detail: str) -> tuple[str, str]:
    """Reason and detail for `model` of a group that ended by the fault of `blame`."""
    if not reason or blame is None or model == blame:
        return reason, detail
    return "group_failed", f"{blame}: {reason}: {detail}"


def disk_reason(error: Exception) -> str | None:
    """The slug of an error by which the disk refused; None for any other error."""
    if isinstance(error, OSError):
        return "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io_error"
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension
        return {
            sqlite3.SQLITE_FULL: "no_space",
            sqlite3.SQLITE_IOERR: "io_error",
            sqlite3.SQLITE_CANTOPEN: "io_error",
            sqlite3.SQLITE_READONLY: "io_error",
        }.get(code)
    return None
