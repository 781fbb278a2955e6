"""The serving figures that a device reports: read from the data plane, journalled by model.

Each reader of the data plane's windows has its own: what the control plane is told, what the lab
counts, and what a person reads as Prometheus text do not take from each other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator

from edge_agent.device.inventory import rss_mib
from edge_agent.link.errors import LinkError
from edge_agent.link.outbox import Outbox
from edge_agent.sampling import Sampler
from edge_agent.serve import DataPlane, MetricsWindow, ModelNotServed
from edge_agent.serve.metrics import prometheus
from edge_agent.wire.messages import ComparisonReport, MetricsReport, TrialMode

log = logging.getLogger("skerry.agent")


class Figures:
    """See the module.  Thread-safe."""

    def __init__(self, plane: DataPlane, sampler: Sampler, outbox: Outbox) -> None:
        self._plane = plane
        self._sampler = sampler
        self._outbox = outbox
        self._lock = threading.Lock()

    def journal(self, models: Iterable[str]) -> None:
        """Journal what these models did since the last call; what cannot be journalled is lost."""
        with self._lock:
            for model in models:
                self._append((*self._served(model), *self._tried(model)))

    def journal_tried(self, model: str) -> None:
        """`journal` of what is tried beside `model` alone."""
        with self._lock:
            self._append(self._tried(model))

    def journal_all(self) -> None:
        """`journal` of every model that is served."""
        self.journal(list(self._plane.models))

    def served_for_the_lab(self) -> int:
        """Predictions answered since the last call, of all models."""
        count = 0
        for model in list(self._plane.models):
            with contextlib.suppress(ModelNotServed):
                count += self._plane.window_metrics(model, "lab").requests
        return count

    def prometheus(self) -> str:
        """Everything since the start, as on `/metrics`."""
        models = [*self._plane.snapshots(), *self._plane.replaced_snapshots()]
        return prometheus(models, self._plane.refusals)

    def _append(self, reports: Iterable[MetricsReport]) -> None:
        for report in reports:
            try:
                self._outbox.append("metrics", report.encode())
            except LinkError as error:
                log.error("metrics.not_journalled cause=%s", error)

    def _served(self, model: str) -> Iterator[MetricsReport]:
        try:
            window = self._plane.window_metrics(model)
        except ModelNotServed:
            return
        corrections = self._sampler.take_corrections(model, window.version)
        if window.requests or corrections:
            yield _report(model, window, corrections)

    def _tried(self, model: str) -> Iterator[MetricsReport]:
        trial = self._plane.trials.get(model)
        if trial is None:
            return
        mode, share = trial.mode, trial.split.share
        try:
            window = self._plane.trial_metrics(model)
        except ModelNotServed:  # it ended meanwhile
            return
        comparison = self._plane.take_comparison(model)
        corrections = self._sampler.take_corrections(model, window.version)
        if window.requests or corrections or comparison is not None:
            yield _report(model, window, corrections, mode, share, comparison)


def _report(
    model: str,
    window: MetricsWindow,
    corrections: int,
    trial: TrialMode | None = None,
    share: float | None = None,
    comparison: ComparisonReport | None = None,
) -> MetricsReport:
    return MetricsReport(
        model=model,
        version=window.version,
        window_s=window.window_s,
        requests=window.requests,
        errors=window.errors,
        rejects=window.rejects,
        corrections=corrections,
        latency_p50_us=window.p50_us,
        latency_p99_us=window.p99_us,
        rss_mib=rss_mib(),
        trial=trial,
        share=share,
        comparison=comparison,
    )
