"""A measurer whose times stand in a table: nothing is timed, so nothing is noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.measure import Comparison, MeasureSettings, measure
from edge_agent.pipeline import Tensors, manifest_file
from edge_agent.wire.manifest import CostModel, Manifest
from optimizer.budget import Budget
from optimizer.profiles import HardwareProfile
from optimizer.task import Fidelity
from optimizer.timing import Measured


class Timetable:
    """Says how long each bundle takes, and remembers what it was asked.

    `briefly` is what it says when it is not measured in full.

    Attributes:
        measured: variant and fidelity of each measurement, in their order.
        compared: variants of baseline and candidate of each comparison.
    """

    def __init__(
        self,
        time_ms: Callable[[Manifest], float],
        memory_mib: float = 50.0,
        briefly: Callable[[Manifest], float] | None = None,
    ) -> None:
        self._time_ms = time_ms
        self._briefly = briefly or time_ms
        self._memory_mib = memory_mib
        self.measured: list[tuple[str, Fidelity]] = []
        self.compared: list[tuple[str, str]] = []

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        return ()

    def where(self, profile: HardwareProfile) -> str:
        return "a table"

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
        assert manifest_file.read(directory) == manifest
        self.measured.append((manifest.variant, fidelity))
        time_ms = self._time_ms if fidelity == "full" else self._briefly
        time_s = time_ms(manifest) / 1e3
        now = [0.0]

        def issue(index: int) -> None:
            now[0] += time_s

        latency = measure(
            issue,
            scenario="single_stream",
            settings=MeasureSettings(
                min_queries=settings.min_queries, min_duration_s=0, attempts=1
            ),
            target_latency_ms=budget.latency_ms,
            percentile=budget.percentile,
            clock=lambda: now[0],
            sleep=lambda _: None,
            waited=lambda: 0.0,
            neighbours=lambda: 0.0,
        )
        cost = CostModel(per_item_us=time_s * 1e6, fixed_us=0.0, max_batch=1)
        full = fidelity == "full"
        return Measured(
            latency,
            server=latency if full and budget.qps is not None else None,
            cost=cost if full else None,
            memory_mib=self._memory_mib * manifest.network.instances,
        )

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        sides = [manifest_file.read(directory) for directory in (baseline_dir, candidate_dir)]
        self.compared.append((sides[0].variant, sides[1].variant))
        times = [self._time_ms(side) for side in sides]
        speedup = times[0] / times[1]
        return Comparison(
            speedup=speedup, low=speedup * 0.99, high=speedup * 1.01, pairs=100,
            baseline_p50_ms=times[0], candidate_p50_ms=times[1], provenance={},
        )  # fmt: skip
