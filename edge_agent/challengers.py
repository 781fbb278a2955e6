"""Between the updater and the data plane: versions that are tried beside the ones that serve.

Rules:
    * Nothing is loaded that the memory does not hold beside what serves: about what the version
      that serves took, or what the files take, whichever is more, and a margin.
    * The figures of a trial are journalled before it changes or ends.
    * The latency of a shadow is no reason against it: it computes at the lowest priority.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.models import Models, Weight, check_golden
from edge_agent.sampling import Sampler
from edge_agent.serve import DataPlane, ModelNotServed
from edge_agent.update.errors import Failed
from edge_agent.update.ports import HealthSample
from edge_agent.update.reading import require_intact
from edge_agent.wire.messages import TrialMode

MARGIN_MIB: Final = 32.0
_FILES_FACTOR: Final = 1.5
"""A runtime holds weights and what it derived of them."""


class Challengers:
    """`edge_agent.update.ports.Beside` of this agent.  One thread at a time."""

    def __init__(
        self,
        plane: DataPlane,
        sampler: Sampler,
        models: Models,
        *,
        leaving: Callable[[str], None],
        changed: Callable[[], None],
        free_mib: Callable[[], float | None],
    ) -> None:
        """
        Args:
            leaving: called with a model's name while what is tried there is tried still.
            changed: called after what is tried, or how, has changed.
            free_mib: memory that may still be taken; None where the system does not tell.
        """
        self._plane = plane
        self._sampler = sampler
        self._models = models
        self._leaving = leaving
        self._changed = changed
        self._free_mib = free_mib
        self._directories: dict[str, Path] = {}
        self._weights: dict[str, Weight] = {}

    def begin(self, model: str, directory: Path, mode: TrialMode, share: float, salt: str) -> None:
        """See `Beside.begin`.

        Raises:
            Failed: "no_memory": two versions do not fit.
            BadBundle, NotServable, ModelNotServed, OSError: it cannot be tried.
        """
        self.end(model)
        self._require_memory(model, directory)
        served, grown_mib = self._models.load(directory)
        try:
            self._sampler.prepare(served.manifest)
            self._plane.try_beside(model, served, mode, share, salt)
        except Exception:
            served.retire(None)
            raise
        self._directories[model] = directory
        self._weights[model] = self._models.weight_of(grown_mib)
        self._changed()

    def change(self, model: str, mode: TrialMode, share: float) -> None:
        """See `Beside.change`."""
        if model in self._plane.trials:
            self._leaving(model)
            self._plane.set_trial(model, mode, share)
            self._changed()

    def end(self, model: str) -> None:
        """See `Beside.end`."""
        if model in self._plane.trials:
            self._leaving(model)
            self._plane.end_trial(model)
        self._directories.pop(model, None)
        self._weights.pop(model, None)
        self._changed()

    def health(self, model: str) -> HealthSample | None:
        """See `Beside.health`."""
        try:
            window = self._plane.trial_metrics(model, "probation")
        except ModelNotServed:
            return None
        answered = window.requests - window.errors - window.rejects
        timed = answered and self._plane.trials[model].mode == "ab"
        return HealthSample(
            requests=window.requests,
            errors=window.errors,
            latency_p99_ms=window.p99_us / 1000.0 if timed else None,
            rss_mib=self._models.alone_mib(self._weights.get(model)),
        )

    def recheck(self, model: str) -> None:
        """See `Beside.recheck`.

        Raises:
            ModelNotServed: it is not tried any more.
            GoldenMismatch: it answers something else now.
        """
        trial = self._plane.trials.get(model)
        directory = self._directories.get(model)
        if trial is None or directory is None:
            raise ModelNotServed(f"nothing is tried beside model {model!r}")
        check_golden(trial.challenger, directory)

    def _require_memory(self, model: str, directory: Path) -> None:
        free_mib = self._free_mib()
        if free_mib is None:
            return
        files_mib = sum(each.length for each in require_intact(directory).files) / (1 << 20)
        needed_mib = MARGIN_MIB + max(self._models.grown_mib(model), _FILES_FACTOR * files_mib)
        if free_mib < needed_mib:
            raise Failed(
                f"two versions of {model} do not fit: about {needed_mib:.0f} MiB are needed, "
                f"{free_mib:.0f} are free",
                "no_memory",
            )


def free_memory_mib(
    meminfo: Path = Path("/proc/meminfo"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> float | None:
    """Memory that this process may still take: the machine's, or less within a control group.

    Returns:
        MiB; None where the system does not tell.
    """
    found: list[float] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(each for each in meminfo.read_text().splitlines() if "MemAvailable" in each)
        found.append(int(line.split()[1]) / 1024)
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = cgroups / own.read_text().partition("0::/")[2].strip()
        for each in (group, *group.parents):
            if each.is_relative_to(cgroups):
                with contextlib.suppress(OSError, ValueError):  # "max"
                    limit = int((each / "memory.max").read_text())
                    used = int((each / "memory.current").read_text())
                    found.append((limit - used) / (1 << 20))
    return min(found, default=None)
