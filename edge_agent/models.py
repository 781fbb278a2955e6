"""Between the updater and the data plane: loads versions, swaps them, and tells how they do.

Rules:
    * A version is loaded on a thread of its own for `LOAD_TIMEOUT_S` at most.  One that hangs costs
      that thread, never the start of the agent nor the version that serves.
    * Versions of a group are all loaded before the first of them answers.
    * A version that is in memory still, as in a roll-back, or already, as what was tried beside
      the one that serves, answers at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.device.inventory import rss_mib
from edge_agent.pipeline import golden
from edge_agent.sampling import Sampler
from edge_agent.serve import DataPlane, ModelNotServed, NotServable, ServedModel
from edge_agent.update.errors import UpdateError
from edge_agent.update.ports import HealthSample
from edge_agent.update.reading import read_manifest, require_intact
from edge_agent.update.serving import NotActivated

log = logging.getLogger("skerry.agent")

LOAD_TIMEOUT_S: Final = 120.0
MAX_FAULT_CHARS: Final = 300


@dataclass(slots=True)
class Weight:
    """Memory of one version, in MiB.

    Attributes:
        grown: what loading it took.
        lowest: least of the whole process since it serves.
    """

    grown: float
    lowest: float


class Models:
    """The updater's ports.  One thread changes models at a time; `faults` from any."""

    def __init__(
        self,
        plane: DataPlane,
        sampler: Sampler,
        *,
        replacing: Callable[[str], None],
        changed: Callable[[], None],
        load: Callable[[Path], ServedModel] = ServedModel.load,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        memory_mib: Callable[[], float] = rss_mib,
    ) -> None:
        """
        Args:
            replacing: called with a model's name while its version before serves still.
            changed: called after what is served, or cannot be, has changed.
            load: opens a bundle whose files are intact.
            memory_mib: resident memory of this process; 0 where the system does not tell.
        """
        self.faults: dict[str, str] = {}
        """Models whose installed version does not load, and why."""
        self._plane = plane
        self._sampler = sampler
        self._replacing = replacing
        self._changed = changed
        self._open = load
        self._load_timeout_s = load_timeout_s
        self._rss_mib = memory_mib
        self._empty_mib: float | None = None  # of the process before its first model
        self._weights: dict[str, Weight] = {}
        self._directories: dict[str, Path] = {}

    def activate(self, model: str, directory: Path) -> None:
        """Serve the bundle in `directory`.

        Raises:
            BadBundle, NotServable, OSError: it cannot be served.
        """
        try:
            if not (self._goes_back(model, directory) or self._promotes(model, directory)):
                self._install(model, directory, *self.load(directory))
        except Exception as error:
            self._fault(model, error)
            raise

    def activate_all(self, directories: Mapping[str, Path]) -> None:
        """Serve several bundles, the first only when all are loaded.

        Raises:
            NotActivated: one cannot be served; none is.
        """
        loaded: dict[str, tuple[ServedModel, float]] = {}
        for model, directory in directories.items():
            try:
                loaded[model] = self.load(directory)
            except Exception as error:
                self._fault(model, error)
                for served, _ in loaded.values():
                    served.retire(None)
                raise NotActivated(model, str(error)) from error
        for model, directory in directories.items():
            self._install(model, directory, *loaded[model])

    def deactivate(self, model: str) -> None:
        """Serve `model` no more."""
        self._plane.remove(model)
        self.faults.pop(model, None)
        self._changed()

    def health(self, model: str) -> HealthSample | None:
        """Figures since the last call; None when it is not served.

        The memory is that of a process that serves this version alone: the one before it, which is
        kept for going back, is not its fault.
        """
        try:
            window = self._plane.window_metrics(model, "probation")
        except ModelNotServed:
            return None
        answered = window.requests - window.errors - window.rejects
        return HealthSample(
            requests=window.requests,
            errors=window.errors,
            latency_p99_ms=window.p99_us / 1000.0 if answered else None,
            rss_mib=self.alone_mib(self._weights.get(model)),
        )

    def recheck(self, model: str) -> None:
        """Have what serves `model` answer its golden inputs.

        Raises:
            GoldenMismatch: it answers something else now.
        """
        served = self._plane.models.get(model)
        directory = self._directories.get(model)
        if served is not None and directory is not None:
            check_golden(served, directory)

    def load(self, directory: Path) -> tuple[ServedModel, float]:
        """A loaded version, which nothing serves yet, and the MiB that it took.

        Raises:
            NotServable: or it took longer than is allowed.
        """
        before_mib = self._rss_mib()
        if self._empty_mib is None:
            self._empty_mib = before_mib
        loading = _Loading(self._open, directory)
        loading.start()
        loading.join(self._load_timeout_s)
        served = loading.take()
        if served is None:
            raise NotServable(f"{directory.name[:16]}: not loaded in {self._load_timeout_s:g} s")
        return served, max(self._rss_mib() - before_mib, 0.0)

    def _install(self, model: str, directory: Path, served: ServedModel, grown_mib: float) -> None:
        self._sampler.prepare(served.manifest)
        self._replacing(model)
        self._plane.install(model, served)
        self._weights[model] = self.weight_of(grown_mib)
        self._directories[model] = directory
        self.faults.pop(model, None)
        self._changed()

    def _promotes(self, model: str, directory: Path) -> bool:
        """Serve what is in `directory` at once if it is tried beside the one that serves."""
        trial = self._plane.trials.get(model)
        if trial is None or not _holds(directory, trial.challenger):
            return False
        self._replacing(model)
        if not self._plane.promote(model):
            return False
        self._directories[model] = directory
        self.faults.pop(model, None)
        self._changed()
        return True

    def _goes_back(self, model: str, directory: Path) -> bool:
        """Serve what is in `directory` at once if it is in memory still, as in a roll-back."""
        try:
            manifest = read_manifest(directory)
        except (UpdateError, OSError):
            return False
        serves, before = self._plane.models.get(model), self._plane.previous.get(model)
        if serves is None or serves.manifest != manifest:
            if before is None or before.manifest != manifest:
                return False
            self._sampler.prepare(before.manifest)
            self._replacing(model)
            if not self._plane.revert(model):
                return False
        self._directories[model] = directory
        self.faults.pop(model, None)  # it was another that did not load
        self._changed()
        return True

    def _fault(self, model: str, error: Exception) -> None:
        self.faults[model] = " ".join(str(error).split())[:MAX_FAULT_CHARS]
        self._changed()

    def grown_mib(self, model: str) -> float:
        """What loading the version that serves `model` took; 0 where that is not known."""
        weight = self._weights.get(model)
        return 0.0 if weight is None else weight.grown

    def alone_mib(self, weight: Weight | None) -> float | None:
        """Memory of a process that serves this version alone; None where nothing is known."""
        now_mib = self._rss_mib()
        if not now_mib or weight is None or self._empty_mib is None:
            return now_mib or None
        weight.lowest = min(weight.lowest, now_mib)
        return self._empty_mib + weight.grown + now_mib - weight.lowest

    def weight_of(self, grown_mib: float) -> Weight:
        """The weight of a version that is served from now on."""
        return Weight(grown_mib, self._rss_mib())


def check_golden(served: ServedModel, directory: Path) -> None:
    """Have what was loaded from `directory` answer its golden inputs.

    Raises:
        GoldenMismatch: it answers something else now.
    """
    manifest = served.manifest
    if manifest.golden is not None:
        golden.check(served.pipeline, directory / manifest.golden, manifest.golden_atol)


def _holds(directory: Path, served: ServedModel) -> bool:
    """Whether the bundle in `directory` is what was loaded."""
    try:
        return read_manifest(directory) == served.manifest
    except (UpdateError, OSError):
        return False


class _Loading(threading.Thread):
    """Loads a version; closes it itself when nobody waits for it any more."""

    def __init__(self, load: Callable[[Path], ServedModel], directory: Path) -> None:
        super().__init__(name="load", daemon=True)
        self._load = load
        self._directory = directory
        self._lock = threading.Lock()
        self._left = False
        self._served: ServedModel | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            require_intact(self._directory)
            served = self._load(self._directory)
        except Exception as error:
            self._error = error
            return
        with self._lock:
            if not self._left:
                self._served = served
                return
        served.retire(None)

    def take(self) -> ServedModel | None:
        """What was loaded; None when it still loads, and is to be closed then.

        Raises:
            Exception: why it did not load.
        """
        with self._lock:
            self._left = True
            if self._error is not None:
                raise self._error
            return self._served
