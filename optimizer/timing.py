"""Measuring a candidate against its budget: the port, and this machine as its default.

A measurer gets a bundle's directory, for that is what can also be sent to a device of the profile.

Rules:
    * The machine-wide lock is held while anything is timed.
    * A profile of another architecture is not measured here: it stays unknown, not estimated.
    * Where this CPU can do more or less than the profile promises, a note says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from edge_agent.measure import (
    Comparison,
    Measurement,
    MeasureSettings,
    MemoryUnmeasured,
    compare_pipelines,
    find_pipeline_qps,
    fit_cost,
    machine_lock,
    measure_memory,
    measure_pipeline,
    percentiles,
)
from edge_agent.pipeline import Pipeline, Tensors, manifest_file
from edge_agent.wire.manifest import CostModel, Manifest
from optimizer.budget import Budget
from optimizer.profiles import VNNI_FLAGS, HardwareProfile, Host
from optimizer.task import Fidelity

log = logging.getLogger("skerry.optimizer")

_SPEED_FLAGS: Final = frozenset({"avx512f", "asimddp", "i8mm", "sve"}) | VNNI_FLAGS
_MAX_SERVER_S: Final = 30.0
_MAX_RATE_SEARCH_S: Final = 20.0
_QUICK_COMPARISON_S: Final = 2.0
_OVERS_ALLOWED_FOR: Final = 5
"""The server run lasts until a percentile with this many slow queries can still be decided."""


@dataclass(frozen=True)
class Measured:
    """What was found; `None` where it was not measured.

    Attributes:
        max_qps: the highest rate at which the latency of the budget holds, where it was sought.
        predicted: nothing was timed; the figures are foretold.
        notes: what must be known beside the figures, e.g. that batches change answers.
    """

    latency: Measurement | None = None
    server: Measurement | None = None
    cost: CostModel | None = None
    memory_mib: float | None = None
    max_qps: float | None = None
    predicted: bool = False
    notes: tuple[str, ...] = ()


class Measurer(Protocol):
    """Times bundles for one profile."""

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        """What must be said about figures that this measurer gives for `profile`."""
        ...

    def where(self, profile: HardwareProfile) -> str:
        """What it measures on for `profile`; empty if it cannot measure that profile."""
        ...

    def measure(
        self,
        directory: Path,
        manifest: Manifest,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        budget: Budget,
        settings: MeasureSettings,
        fidelity: Fidelity = "full",
    ) -> Measured:
        """Time the bundle in `directory`, issuing `samples` of one item each.

        Args:
            fidelity: "full" establishes what the budget asks for; below that a latency will do.
                More than what is asked for does no harm.

        Raises:
            PipelineError, SessionError: the bundle cannot be opened or does not answer.
            MeasureError: the machine was not free, or the measurement failed.
        """
        ...

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        """Time two bundles in turns in one run; `None` where the profile cannot be measured.

        Raises:
            PipelineError, SessionError: a bundle cannot be opened or does not answer.
            MeasureError: the machine was not free, or the measurement failed.
        """
        ...


class LocalMeasurer:
    """Measures on this machine."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host.here()

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        host = self._host
        if not self._can_measure(profile):
            return (
                f"not measured: this machine is {host.machine}, the profile {profile.machine}; "
                "measure on a device of the profile",
            )
        notes = []
        if beyond := sorted((host.flags - profile.flags) & _SPEED_FLAGS):
            notes.append(f"measured with {', '.join(beyond)}, which the profile does not promise")
        if lacking := sorted(profile.flags - host.flags):
            notes.append(f"measured without {', '.join(lacking)}, which the profile has")
        if profile.model_threads > host.cores:
            notes.append(f"{profile.model_threads} threads were measured on {host.cores} cores")
        return tuple(notes)

    def where(self, profile: HardwareProfile) -> str:
        return "this machine" if self._can_measure(profile) else ""

    def measure(
        self,
        directory: Path,
        manifest: Manifest,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        budget: Budget,
        settings: MeasureSettings,
        fidelity: Fidelity = "full",
    ) -> Measured:
        if not self._can_measure(profile):
            return Measured()
        pipeline = Pipeline.open(directory, manifest)
        try:
            with machine_lock():
                if fidelity != "full":
                    weigh = fidelity == "quick" and manifest.network.instances > 1
                    return Measured(
                        _latency(pipeline, samples, budget, settings),
                        memory_mib=_memory_mib(directory) if weigh else None,
                    )
                fit = fit_cost(pipeline, samples, max_batch_ms=budget.latency_ms)
                latency = _latency(pipeline, samples, budget, settings)
                server = None
                if budget.qps is not None:
                    server = measure_pipeline(
                        pipeline,
                        samples,
                        scenario="server",
                        settings=_long_enough(settings, budget.qps, budget.percentile),
                        target_latency_ms=budget.latency_ms,
                        percentile=budget.percentile,
                        qps=budget.qps,
                    )
                max_qps = _max_qps(pipeline, samples, budget, settings)
        finally:
            pipeline.close()
        weighed = (
            budget.memory_mib is not None
            or budget.replicas is not None
            or manifest.network.instances > 1
        )
        memory = _memory_mib(directory) if weighed else None
        log.info(
            "cost.fitted variant=%s per_item_us=%.1f fixed_us=%.1f max_batch=%d reason=%r",
            manifest.variant, fit.cost.per_item_us, fit.cost.fixed_us, fit.cost.max_batch,
            fit.reason,
        )  # fmt: skip
        return Measured(
            latency, server, fit.cost, memory, max_qps, notes=(fit.note,) if fit.note else ()
        )

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        if not self._can_measure(profile):
            return None
        with ExitStack() as stack:
            baseline, candidate = (
                stack.enter_context(closing(Pipeline.open(place, manifest_file.read(place))))
                for place in (baseline_dir, candidate_dir)
            )
            with machine_lock():
                return compare_pipelines(
                    baseline,
                    candidate,
                    samples,
                    settings=settings,
                    time_limit_s=_QUICK_COMPARISON_S if settings.quick else None,
                )

    def _can_measure(self, profile: HardwareProfile) -> bool:
        return profile.machine == self._host.machine


def _latency(
    pipeline: Pipeline, samples: Sequence[Tensors], budget: Budget, settings: MeasureSettings
) -> Measurement:
    return measure_pipeline(
        pipeline,
        samples,
        scenario="single_stream",
        settings=settings,
        target_latency_ms=budget.latency_ms,
        percentile=budget.percentile,
    )


def _max_qps(
    pipeline: Pipeline, samples: Sequence[Tensors], budget: Budget, settings: MeasureSettings
) -> float | None:
    """The highest rate that holds the budget's latency; sought where the budget names a rate."""
    if settings.quick or budget.qps is None or budget.latency_ms is None:
        return None
    found = find_pipeline_qps(
        pipeline,
        samples,
        target_latency_ms=budget.latency_ms,
        percentile=budget.percentile,
        settings=MeasureSettings.quick_mode(settings.seed),
        time_limit_s=_MAX_RATE_SEARCH_S,
    )
    return found.highest_qps


def _memory_mib(directory: Path) -> float | None:
    try:
        return measure_memory(directory)
    except MemoryUnmeasured:
        return None  # an unknown fact: the budget's judgement says so


def _long_enough(settings: MeasureSettings, qps: float, percentile: float) -> MeasureSettings:
    """Arrivals are paced, so a percentile takes as long as its queries take to arrive."""
    needed = percentiles.queries_needed(_OVERS_ALLOWED_FOR, percentile)
    duration_s = min(_MAX_SERVER_S, math.ceil(1.1 * needed / qps))
    return settings.model_copy(
        update={"max_duration_s": max(settings.max_duration_s, float(duration_s))}
    )
