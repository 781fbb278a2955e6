"""Figures of a search in the words that report, explanation and command share.  Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from optimizer.budget import Budget
from optimizer.task import Candidate, OptimizeResult

DASH: Final = "–"

_FIDELITY: Final = {"probe": "a few runs", "quick": "more runs", "full": "in full"}
_GAVE_WAY: Final = "so it gave way"


def metric_label(result: OptimizeResult) -> str:
    """What the primary metric is called here."""
    if result.agreement and result.primary == "accuracy":
        return "agreement with fp32"
    return result.primary.replace("_", "-").replace("f1", "F1")


def quality(result: OptimizeResult, candidate: Candidate) -> float | None:
    """The primary metric, 0..1."""
    return None if candidate.accuracy is None else candidate.accuracy.metric(result.primary)


def best_baseline(result: OptimizeResult) -> float:
    """What losses are counted from: the primary metric of the best member before any recipe."""
    return max(result.baselines.values(), default=0.0)


def loss_points(result: OptimizeResult, candidate: Candidate) -> float | None:
    """What is lost of the primary metric, in points of a percent; gains count as nothing."""
    value = quality(result, candidate)
    return None if value is None else max(0.0, best_baseline(result) - value) * 100


def of_profile(result: OptimizeResult, profile: str) -> list[Candidate]:
    """The candidates of a profile: the chosen one, what passes by speed, then what does not."""
    depth = {"full": 0, "quick": 1, "probe": 2}
    verdicts = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 1, "INVALID": 2}

    def place(candidate: Candidate) -> tuple[bool, int, int, float, str]:
        return (
            not candidate.selected,
            verdicts[candidate.verdict],
            depth[candidate.fidelity],
            time_ms(candidate) or float("inf"),
            candidate.name,
        )

    return sorted((c for c in result.candidates if c.profile == profile), key=place)


def chosen(result: OptimizeResult, profile: str) -> Candidate | None:
    return next((c for c in result.candidates if c.profile == profile and c.selected), None)


def plain(result: OptimizeResult, profile: str) -> Candidate | None:
    """The best member in fp32 on ONNX Runtime: what one would start with; measured, or none."""
    if not result.baselines:
        return None
    best = max(result.baselines, key=lambda name: result.baselines[name])
    name = f"{best}/fp32"
    found = (c for c in result.candidates if c.profile == profile and c.name == name)
    return next((c for c in found if c.accuracy is not None), None)


def time_ms(candidate: Candidate) -> float | None:
    """What candidates are ordered by, as in the choice: the median."""
    if candidate.measurement is not None:
        return candidate.measurement.p50_ms
    return candidate.latency_ms


def tail_ms(candidate: Candidate) -> float | None:
    """What the frontier goes by: the latency at the budget's percentile, else the median."""
    return time_ms(candidate) if candidate.latency_ms is None else candidate.latency_ms


def gave_way(candidate: Candidate) -> str:
    """Why it was not chosen though it was the first to be: the note of its comparison, or ""."""
    return next((note for note in candidate.notes if note.endswith(_GAVE_WAY)), "")


def fidelity(candidate: Candidate) -> str:
    return _FIDELITY[candidate.fidelity]


def kind_of(reason: str) -> str:
    """What kind of bound a reason is about: the words before its first figure."""
    return re.split(r"\s(?=[\d.]+\s)", reason, maxsplit=1)[0].split(":")[0]


def budget_words(budget: Budget) -> list[str]:
    """Each bound of the budget in a few words."""
    words = []
    if budget.latency_ms is not None:
        words.append(f"p{budget.percentile * 100:g} ≤ {budget.latency_ms:g} ms")
    if budget.qps is not None:
        words.append(f"at {budget.qps:g} QPS")
    if budget.memory_mib is not None:
        words.append(f"memory ≤ {budget.memory_mib:,g} MiB")
    if budget.artifact_kib is not None:
        words.append(f"bundle ≤ {budget.artifact_kib:,g} KiB")
    if budget.max_accuracy_drop_points is not None:
        words.append(f"loss ≤ {points(budget.max_accuracy_drop_points)}")
    words += [f"{name.replace('_', '-')} ≥ {v:g}" for name, v in budget.min_accuracy.items()]
    words += [f"recall of {label} ≥ {v:g}" for label, v in budget.min_recall.items()]
    if budget.replicas is not None:
        words.append(f"{count(budget.replicas, 'replica')} per device")
    return [*(words or ["no bounds"]), f"prefers {budget.preference}"]


def floor(result: OptimizeResult, budget: Budget) -> float | None:
    """The smallest primary metric that the budget allows."""
    floors = []
    if budget.max_accuracy_drop_points is not None and result.baselines:
        floors.append(best_baseline(result) - budget.max_accuracy_drop_points / 100)
    if (least := budget.min_accuracy.get(result.primary)) is not None:
        floors.append(least)
    return max(floors, default=None)


def speedup_words(candidate: Candidate) -> str:
    """ "3.10× (3.05 to 3.16)" against fp32; empty where they were not timed in turns."""
    found = candidate.comparison
    if found is None:
        return ""
    return f"{times(found.speedup)} ({found.low:.2f} to {found.high:.2f})"


def joined(names: Sequence[str], most: int = 4) -> str:
    """The names, the last ones as a number where there are many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def points(value: float) -> str:
    return f"{value:g} point" if value == 1 else f"{value:.3g} points"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{value * 100:.2f} %"


def ms(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


def kib(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,.0f} KiB" if value < 10_240 else f"{value / 1024:,.1f} MiB"


def mib(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f} MiB"


def times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×"


def seconds(value: float) -> str:
    """Two units at most: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = max(0, round(value))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
