"""Why the chosen variant was chosen, in plain text.  Pure: everything comes from the result.

It tells what decided, bound by bound and against whom, and what was looked at how carefully.  The
items' single answers are not part of a stored result: what is "significantly worse" is repeated as
the search found it, not computed again.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from edge_agent.measure import Measurement
from optimizer import figures
from optimizer.budget import Budget
from optimizer.errors import UnknownProfile, did_you_mean
from optimizer.figures import count, joined, kib, metric_label, ms, percent, points, quality, times
from optimizer.task import Candidate, OptimizeResult

_WIDTH: Final = 96
_MOST_REFUSED: Final = 6
_BEATEN: Final = "not measured in full: "
_TWIN: Final = "the same files as "


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it, a line or two each."""

    title: str
    lines: tuple[str, ...]


def explain(result: OptimizeResult, profile: str = "") -> str:
    """The explanation as text for a terminal.

    Args:
        profile: all where empty.

    Raises:
        UnknownProfile: the search was not about `profile`.
    """
    if profile and profile not in result.budgets:
        raise UnknownProfile(
            f"this search has no profile '{profile}'{did_you_mean(profile, result.budgets)}"
        )
    parts = []
    for name in [profile] if profile else list(result.budgets):
        heading = f"{result.model} on {name}"
        parts += [heading, "═" * len(heading)]
        for section in sections(result, name):
            parts += ["", section.title, *(_wrapped(line) for line in section.lines)]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def sections(result: OptimizeResult, profile: str) -> list[Section]:
    """The parts of the explanation for one profile; parts without content are left out."""
    budget = result.budgets[profile]
    candidates = figures.of_profile(result, profile)
    winner = figures.chosen(result, profile)
    found = [
        Section("Chosen", _chosen(result, profile, winner)),
        Section("Budget", _bounds(result, budget, winner or _nearest(candidates))),
        Section("Runner-up", _runner_up(result, budget, winner, candidates)),
        Section("Faster, but refused", _refused(result, budget, winner, candidates)),
        Section("The search", _search(result, candidates)),
        Section("With another preference", _otherwise(result, budget, winner, candidates)),
        Section("Where the figures come from", _origin(result, winner, candidates)),
    ]
    return [section for section in found if section.lines]


def _chosen(result: OptimizeResult, profile: str, winner: Candidate | None) -> tuple[str, ...]:
    if winner is None:
        return (result.unmet.get(profile, "nothing: no variant meets the budget"),)
    lines = [f"{winner.name}: {_figures(result, winner)}"]
    compared = winner.comparison
    if compared is not None:
        kind = "a short comparison" if compared.quick else "a comparison"
        lines.append(
            f"{times(compared.speedup)} as fast as fp32, with 99 % confidence between "
            f"{compared.low:.2f} and {compared.high:.2f}: {kind} of {count(compared.pairs, 'pair')}"
            f" timed in turns, {ms(compared.candidate_p50_ms)} against "
            f"{ms(compared.baseline_p50_ms)}"
        )
        if compared.disturbed:
            lines.append(f"the comparison was disturbed: {compared.disturbed}")
    elif (plain := figures.plain(result, profile)) is not None and plain.name == winner.name:
        lines.append("it is fp32 itself: nothing that keeps the budget was surely better")
    else:
        lines.append("it was not timed against fp32 in turns")
    return tuple(lines)


def _bounds(result: OptimizeResult, budget: Budget, candidate: Candidate | None) -> tuple[str, ...]:
    """Each bound with what it was held against, and how much there is to spare."""
    if candidate is None:
        return ()
    lines = []
    if budget.latency_ms is not None:
        name = f"p{budget.percentile * 100:g} latency"
        run = candidate.measurement
        lines.append(_at_most(name, candidate.latency_ms, budget.latency_ms, "ms", run))
        if run is not None and run.upper_bound_ms is not None and candidate.latency_ms is not None:
            lines[-1] += f"; with 99 % confidence below {ms(run.upper_bound_ms)}"
    if budget.qps is not None:
        server = candidate.server
        if server is None:
            lines.append(f"? {budget.qps:g} QPS: not measured")
        else:
            mark = "✓" if server.verdict == "PASS" else "✗" if server.verdict == "FAIL" else "?"
            most = "" if candidate.max_qps is None else f"; holds up to {candidate.max_qps:,.0f}"
            lines.append(
                f"{mark} at {budget.qps:g} QPS p50 is {ms(server.p50_ms)}, "
                f"p99 {ms(server.p99_ms)}{most}"
            )
    if budget.memory_mib is not None:
        lines.append(_at_most("memory", candidate.memory_mib, budget.memory_mib, "MiB"))
    if budget.artifact_kib is not None:
        lines.append(_at_most("bundle", candidate.artifact_kib, budget.artifact_kib, "KiB"))
    if budget.replicas is not None:
        lines.append(f"{count(budget.replicas, 'replica')} of {figures.mib(candidate.memory_mib)}")
    if budget.max_accuracy_drop_points is not None:
        lost = figures.loss_points(result, candidate)
        name = f"loss of {metric_label(result)}"
        lines.append(_at_most(name, lost, budget.max_accuracy_drop_points, "points"))
    accuracy = candidate.accuracy
    for metric, least in budget.min_accuracy.items():
        value = None if accuracy is None else accuracy.metric(metric)
        lines.append(_at_least(metric.replace("_", "-"), value, least))
    for label, least in budget.min_recall.items():
        value = None if accuracy is None else accuracy.recall.get(label)
        lines.append(_at_least(f"recall of '{label}'", value, least))
    if not lines:
        return ("no bound is given",)
    return tuple(lines if candidate.selected else [f"of {candidate.name}:", *lines])


def _runner_up(
    result: OptimizeResult,
    budget: Budget,
    winner: Candidate | None,
    candidates: Sequence[Candidate],
) -> tuple[str, ...]:
    passed = [c for c in candidates if c.verdict == "PASS" and c is not winner]
    if winner is None:
        return ()
    if not passed:
        return ("none: nothing else that was measured in full keeps the budget",)
    slower = [c for c in passed if (figures.time_ms(c) or 0) >= (figures.time_ms(winner) or 0)]
    if budget.preference == "accuracy":
        best = max(passed, key=lambda c: (quality(result, c) or 0, -(figures.time_ms(c) or 0)))
        if (quality(result, best) or 0) > (quality(result, winner) or 0):
            return (
                f"{best.name}: {_figures(result, best)}",
                f"it answers better by {_points_between(result, best, winner)}, but not by more "
                "than chance may give on these items, so speed decided",
            )
    if not slower:
        return ()
    second = min(slower, key=lambda c: (figures.time_ms(c) or 0, c.name))
    return (
        f"{second.name}: {_figures(result, second)}",
        f"what decided: {_decided(result, winner, second)}",
    )


def _decided(result: OptimizeResult, winner: Candidate, second: Candidate) -> str:
    ours, theirs = figures.time_ms(winner), figures.time_ms(second)
    if ours and theirs and theirs > ours:
        return f"speed, median {ms(ours)} against {ms(theirs)} ({times(theirs / ours)} as long)"
    if (quality(result, winner) or 0) > (quality(result, second) or 0):
        return f"accuracy, by {_points_between(result, winner, second)}, at the same speed"
    return f"size, {kib(winner.artifact_kib)} against {kib(second.artifact_kib)}"


def _refused(
    result: OptimizeResult,
    budget: Budget,
    winner: Candidate | None,
    candidates: Sequence[Candidate],
) -> tuple[str, ...]:
    """Those with a smaller median, and why they were not taken."""
    if winner is None or winner.measurement is None:
        return ()
    limit = winner.measurement.p50_ms
    faster = [
        c for c in candidates
        if c is not winner and c.measurement is not None and c.measurement.p50_ms < limit
    ]  # fmt: skip
    faster.sort(key=lambda c: c.measurement.p50_ms if c.measurement else 0.0)
    lines = [
        f"{c.name}, median {ms(c.measurement.p50_ms if c.measurement else None)} "
        f"({figures.fidelity(c)}): {_why_not(result, budget, c)}"
        for c in faster[:_MOST_REFUSED]
    ]
    if len(faster) > _MOST_REFUSED:
        lines.append(f"and {count(len(faster) - _MOST_REFUSED, 'more variant')}")
    return tuple(lines)


def _why_not(result: OptimizeResult, budget: Budget, candidate: Candidate) -> str:
    if note := figures.gave_way(candidate):
        return note
    if candidate.reason:
        return candidate.reason
    if budget.preference == "accuracy":
        return (
            "surely less accurate than the best: "
            f"{metric_label(result)} {percent(quality(result, candidate))}"
        )
    return "it passes as well, but others came first in the comparisons with fp32"


def _search(result: OptimizeResult, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """What went no further than where, and why."""
    lines = []
    if result.points:
        profiles = "" if len(result.budgets) == 1 else " on all profiles"
        lines.append(
            f"{count(result.points, 'different point')}{profiles}, {result.measured} of them "
            f"measured in full ({result.measured_fraction:.0%}), "
            f"in {figures.seconds(result.duration_s)}"
        )
    broken = [c for c in candidates if c.verdict == "INVALID" and c.measurement is None]
    for reason, names in _grouped(broken).items():
        lines.append(f"could not be made or run: {joined(names)}: {reason}")
    twins = [c.name for c in candidates if any(note.startswith(_TWIN) for note in c.notes)]
    if twins:
        lines.append(f"the files of another under a second name: {joined(twins)}")
    rest = [c for c in candidates if c not in broken and c.name not in twins]
    for fidelity in ("probe", "quick"):
        stopped = [c for c in rest if c.fidelity == fidelity]
        if stopped:
            lines.append(
                f"went no further than {figures.fidelity(stopped[0])}: {len(stopped)}, of which "
                + "; ".join(_stopped(stopped))
            )
    full = Counter(c.verdict for c in rest if c.fidelity == "full")
    if full:
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(full.items()))
        lines.append(f"measured in full: {sum(full.values())}: {verdicts}")
    lines += result.notes
    return tuple(lines)


def _stopped(candidates: Iterable[Candidate]) -> list[str]:
    kinds: Counter[str] = Counter()
    for candidate in candidates:
        reason = candidate.reason
        if reason.startswith(_BEATEN):
            kinds[reason.removeprefix(_BEATEN)] += 1
        elif candidate.verdict == "FAIL":
            kinds[f"miss the bound of {figures.kind_of(reason)}"] += 1
        else:
            kinds[reason or "open"] += 1
    return [f"{number}: {kind}" for kind, number in kinds.most_common()]


def _otherwise(
    result: OptimizeResult,
    budget: Budget,
    winner: Candidate | None,
    candidates: Sequence[Candidate],
) -> tuple[str, ...]:
    passed = [c for c in candidates if c.verdict == "PASS"]
    if winner is None or not passed:
        return ()
    if budget.preference == "speed":
        other, taken = "accuracy", max(
            passed, key=lambda c: (quality(result, c) or 0, -(figures.time_ms(c) or 0))
        )  # fmt: skip
        gain = "the most accurate of what passes, or a faster one that is not surely worse"
    else:
        eligible = [c for c in passed if not figures.gave_way(c)] or passed
        other, taken = "speed", min(eligible, key=lambda c: (figures.time_ms(c) or 0, c.name))
        gain = "the fastest of what passes"
    if taken is winner:
        return (f"prefer: {other} would take the same: it is {gain.split(',')[0]}",)
    return (
        f"prefer: {other} would take {gain}; of those measured in full that is {taken.name}: "
        f"{_figures(result, taken)}",
    )


def _origin(
    result: OptimizeResult, winner: Candidate | None, candidates: Sequence[Candidate]
) -> tuple[str, ...]:
    lines = []
    places = Counter(c.measured_on for c in candidates if c.measured_on and not c.predicted)
    lines += [f"measured on {where}: {count(n, 'variant')}" for where, n in places.items()]
    predicted = [c.name for c in candidates if c.predicted]
    if predicted:
        lines.append(
            f"predicted, never measured on this profile: {joined(predicted)}; "
            "publishing one needs --allow-predicted"
        )
    if result.quick:
        lines.append("measured in quick mode: long enough to choose by, not to quote")
    if winner is not None:
        run = winner.measurement
        if run is not None:
            asked = {key: run.provenance.get(key, "") for key in ("runtime", "version", "device")}
            lines.append(
                f"{winner.name} ran {winner.precision} on {' '.join(filter(None, asked.values()))}"
                f" with {count(winner.threads, 'thread')}, {count(winner.instances, 'instance')}; "
                f"load per core {run.load_per_core:.2f} when it began"
            )
        lines += [note for note in winner.notes if note not in lines]
    return tuple(lines)


def _figures(result: OptimizeResult, candidate: Candidate) -> str:
    budget = result.budgets[candidate.profile]
    parts = []
    if candidate.latency_ms is not None:
        parts.append(f"p{budget.percentile * 100:g} {ms(candidate.latency_ms)}")
    if candidate.measurement is not None:
        parts.append(f"median {ms(candidate.measurement.p50_ms)}")
    if candidate.accuracy is not None:
        parts.append(f"{metric_label(result)} {percent(quality(result, candidate))}")
    if candidate.artifact_kib is not None:
        parts.append(f"bundle {kib(candidate.artifact_kib)}")
    if candidate.predicted:
        parts.append("predicted")
    return ", ".join(parts) or "no figures"


def _points_between(result: OptimizeResult, one: Candidate, other: Candidate) -> str:
    return points(((quality(result, one) or 0) - (quality(result, other) or 0)) * 100)


def _nearest(candidates: Sequence[Candidate]) -> Candidate | None:
    judged = [c for c in candidates if c.verdict == "FAIL" and c.accuracy is not None]
    return min(judged, key=lambda c: c.distance, default=None)


def _at_most(
    name: str, value: float | None, bound: float, unit: str, run: Measurement | None = None
) -> str:
    """
    Args:
        run: of a percentile: its own verdict, by statistics, outweighs the observed value.
    """
    if value is None:
        return f"? {name}: not established"
    if run is not None and run.verdict != "PASS" and value <= bound:
        return f"? {name} {value:.3g} {unit} of {bound:g} {unit}: {run.reason}"
    seen = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    if value > bound:
        over = "" if bound == 0 else f", {value / bound - 1:.0%} too much"
        return f"✗ {name} {seen} {unit} > {bound:,g} {unit}{over}"
    spare = "" if bound == 0 else f", {1 - value / bound:.0%} to spare"
    return f"✓ {name} {seen} {unit} ≤ {bound:,g} {unit}{spare}"


def _at_least(name: str, value: float | None, least: float) -> str:
    if value is None:
        return f"? {name}: not established"
    sign, mark = ("≥", "✓") if value >= least else ("<", "✗")
    return f"{mark} {name} {value:.4f} {sign} {least:g}, by {points(abs(value - least) * 100)}"


def _grouped(candidates: Iterable[Candidate]) -> dict[str, list[str]]:
    """Names by the reason that they share."""
    groups: dict[str, list[str]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.reason, []).append(candidate.name)
    return groups


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
