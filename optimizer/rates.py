"""What one replica of a model does on a profile: the figures that a plan is made from.

They come from a report of the optimizer (measured on the profile, or predicted for it), from the
registry, or from a person who gives them; which of these, each says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from optimizer.task import Candidate, OptimizeResult

Origin = Literal["measured", "predicted", "given"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Replica(BaseModel):
    """One process that serves one variant.

    Attributes:
        service_ms: time that a single item keeps it busy.
        tail_ms: latency of an item at `percentile` when nothing else is asked; `None` if unknown.
        memory_mib: of the process; `None` if it was not measured.
        runtime: empty if unknown, which is none that uses an accelerator.
        threads: intra-op threads of each instance; those of the profile where it is 0.
        instances: items that it answers at the same time.
        held_qps: the highest rate at which `held_ms` held at `percentile`, where it was sought.
        notes: what must be known beside the figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    origin: Origin
    service_ms: Positive
    variant: str = ""
    tail_ms: Positive | None = None
    percentile: float = 0.99
    memory_mib: Positive | None = None
    runtime: str = ""
    threads: Annotated[int, Field(ge=0)] = 0
    instances: Annotated[int, Field(ge=1)] = 1
    held_qps: Positive | None = None
    held_ms: Positive | None = None
    notes: tuple[str, ...] = ()

    def held_at(self, latency_ms: float, percentile: float) -> bool:
        """Whether `held_qps` answers the question for this latency and percentile."""
        return self.held_ms is not None and (
            math.isclose(self.held_ms, latency_ms) and math.isclose(self.percentile, percentile)
        )


def of_report(result: OptimizeResult) -> dict[str, Replica]:
    """The selected variant of each profile, where it was timed; by the profile's name."""
    found = {}
    for candidate in result.candidates:
        if not candidate.selected:
            continue
        service_ms = _service_ms(candidate)
        if service_ms is None:
            continue
        budget = result.budgets[candidate.profile]
        found[candidate.profile] = Replica(
            origin="predicted" if candidate.predicted else "measured",
            service_ms=service_ms,
            variant=candidate.name,
            tail_ms=candidate.latency_ms or None,
            percentile=budget.percentile,
            memory_mib=candidate.memory_mib or None,
            runtime=candidate.runtime,
            threads=candidate.threads,
            instances=candidate.instances,
            held_qps=candidate.max_qps or None,
            held_ms=budget.latency_ms if candidate.max_qps else None,
            notes=_on_measuring(candidate.notes),
        )
    return found


def of_stored(
    variant: str, runtime: str, facts: Mapping[str, Any], *, predicted: bool
) -> Replica | None:
    """From what the registry keeps of a candidate's measurement; `None` where it was not timed.

    Args:
        facts: fields of a `Measurement` and, beside them, of the candidate.

    Raises:
        ValueError: the facts make no sense (pydantic's `ValidationError`).
    """
    if not facts.get("p50_ms"):
        return None
    percentile = facts.get("percentile", 0.99)
    tail = {0.5: "p50_ms", 0.9: "p90_ms", 0.95: "p95_ms"}.get(percentile, "p99_ms")
    return Replica(
        origin="predicted" if predicted else "measured",
        service_ms=facts["p50_ms"],
        variant=variant,
        tail_ms=facts.get(tail) or None,
        percentile=percentile,
        memory_mib=facts.get("memory_mib") or None,
        runtime=runtime,
        threads=facts.get("threads", 0),
        instances=facts.get("instances", 1),
        held_qps=facts.get("max_qps") or None,
        held_ms=facts.get("target_latency_ms") or None,
        notes=_on_measuring(facts.get("notes", ())),
    )


def _on_measuring(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(note for note in notes if "measured" in note)


def _service_ms(candidate: Candidate) -> float | None:
    """Time for a single item: by the cost model, else the median that was measured."""
    cost, measured = candidate.cost, candidate.measurement
    if cost is not None and cost.per_item_us + cost.fixed_us > 0:
        return (cost.per_item_us + cost.fixed_us) / 1e3
    return measured.p50_ms if measured is not None and measured.p50_ms > 0 else None
