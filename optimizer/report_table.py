"""The report's table of every candidate, sortable by a click on a heading."""

from __future__ import annotations

from html import escape

from optimizer import figures
from optimizer.figures import DASH, kib, metric_label, mib, ms, percent
from optimizer.task import Candidate, OptimizeResult


def candidate_table(result: OptimizeResult, profile: str, said: frozenset[str]) -> str:
    """All candidates of `profile`, in the order of `figures.of_profile`.

    Args:
        said: notes that stand above it already.
    """
    candidates = figures.of_profile(result, profile)
    budget = result.budgets[profile]
    numeric = [
        metric_label(result), "loss", "p50", f"p{budget.percentile * 100:g}", "vs fp32",
        "one stream", "bundle", "memory",
    ]  # fmt: skip
    if any(c.max_qps is not None for c in candidates):
        numeric.append("highest rate")
    head = "".join(f"<th>{name}</th>" for name in ("#", "variant", "verdict"))
    head += "".join(f'<th class="n">{escape(name)}</th>' for name in numeric)
    rows = "".join(
        _row(result, number, candidate, said, rates="highest rate" in numeric)
        for number, candidate in enumerate(candidates, start=1)
    )
    return f"""<div class="scroll tall"><table class="sortable"><thead><tr>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _row(
    result: OptimizeResult, number: int, candidate: Candidate, said: frozenset[str], rates: bool
) -> str:
    timed = candidate.measurement
    loss = figures.loss_points(result, candidate)
    compared = candidate.comparison
    cells: list[tuple[float | None, str]] = [
        (quality := figures.quality(result, candidate), percent(quality)),
        (loss, DASH if loss is None else f"{loss:.2f}"),
        (timed.p50_ms if timed else None, ms(timed.p50_ms if timed else None)),
        (candidate.latency_ms, ms(candidate.latency_ms)),
        (compared.speedup if compared else None, figures.speedup_words(candidate) or DASH),
        (timed.qps if timed else None, f"{timed.qps:,.0f}/s" if timed else DASH),
        (candidate.artifact_kib, kib(candidate.artifact_kib)),
        (candidate.memory_mib, mib(candidate.memory_mib)),
    ]
    if rates:
        rate = candidate.max_qps
        cells.append((rate, DASH if rate is None else f"{rate:,.0f}/s"))
    numbers = "".join(
        f'<td class="n" data-v="{"" if value is None else f"{value:.9g}"}">{words}</td>'
        for value, words in cells
    )
    return f"""<tr class="{_kinds(candidate)}"><td class="num" data-v="{number}">{number}</td>
<td data-v="{escape(candidate.name)}">{_variant(candidate, said)}</td>
<td data-v="{candidate.verdict}"><span class="verdict {candidate.verdict.lower()}">
{candidate.verdict}</span></td>{numbers}</tr>"""


def _kinds(candidate: Candidate) -> str:
    kinds = ["is-chosen"] if candidate.selected else []
    kinds += ["brief"] if candidate.fidelity != "full" else []
    return " ".join(kinds)


def _variant(candidate: Candidate, said: frozenset[str]) -> str:
    tags = ""
    if candidate.selected:
        tags += '<span class="tag chosen">chosen</span>'
    if candidate.on_frontier:
        tags += '<span class="tag">frontier</span>'
    if candidate.predicted:
        tags += '<span class="tag warn">predicted</span>'
    facts = [candidate.runtime, candidate.precision]
    facts.append(figures.count(candidate.threads, "thread"))
    if candidate.instances != 1:
        facts.append(figures.count(candidate.instances, "instance"))
    if candidate.measurement is not None and candidate.fidelity != "full":
        facts.append(figures.fidelity(candidate))
    if candidate.parent:
        facts.append(f"derived from {candidate.parent}")
    reason = f'<p class="reason">{escape(candidate.reason)}</p>' if candidate.reason else ""
    notes = "".join(
        f'<p class="sub">{escape(note)}</p>' for note in candidate.notes if note not in said
    )
    return f"""<b>{escape(candidate.name)}</b> {tags}
<p class="sub">{escape(" · ".join(facts))}</p>{reason}{notes}"""
