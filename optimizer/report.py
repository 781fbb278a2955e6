"""The report of a search: one HTML file that needs nothing else, and the same facts as JSON.

Every candidate is listed with its verdict and why, chosen or not, and every figure with what it was
taken on.  Text that comes from a project is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from optimizer.budget import Budget
from optimizer.picture import frontier_svg
from optimizer.report_style import STYLE
from optimizer.task import Candidate, OptimizeResult

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"

_DASH: Final = "–"


def write_report(result: OptimizeResult, out_dir: Path) -> Path:
    """Write `report.html` and `report.json` into `out_dir`.

    Returns:
        The path of the HTML file.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    without_rows = {"candidates": {"__all__": {"accuracy": {"predictions"}}}}
    (out_dir / JSON_NAME).write_text(
        result.model_dump_json(indent=1, exclude=without_rows), encoding="utf-8"
    )
    path = out_dir / HTML_NAME
    path.write_text(render(result), encoding="utf-8")
    return path


def render(result: OptimizeResult) -> str:
    """The report as one HTML document."""
    title = f"{result.model} · version {result.version}"
    quick = '<span class="tag">quick measurement</span>' if result.quick else ""
    best = max(result.baselines.values(), default=0.0)
    baselines = ", ".join(
        f"{escape(name)} {_percent(value)}" for name, value in result.baselines.items()
    )
    sections = "".join(_profile(result, name) for name in result.budgets)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} – optimisation</title><style>{STYLE}</style></head>
<body><main>
<header><p class="eyebrow">Optimisation report</p><h1>{escape(title)} {quick}</h1>
<p class="lead">{len(result.candidates)} variants on
{_count(len(result.budgets), "hardware profile")}.
Before any recipe the family reaches {_label(result)} {baselines};
losses are counted from {_percent(best)}.</p></header>
<div class="cards">{"".join(_card(result, name) for name in result.budgets)}</div>
{sections}
{_environment(result)}
</main></body></html>
"""


def _card(result: OptimizeResult, profile: str) -> str:
    chosen = _selected(result, profile)
    if chosen is None or chosen.accuracy is None:
        return f"""<section class="card missed"><p class="eyebrow">{escape(profile)}</p>
<p class="big">Budget not met</p><p>{escape(result.unmet.get(profile, ""))}</p></section>"""
    facts = [
        (_label(result), _percent(chosen.accuracy.metric(result.primary))),
        (f"p{result.budgets[profile].percentile * 100:g}", _ms(chosen.latency_ms)),
        ("bundle", _kib(chosen.artifact_kib)),
    ]
    if (gain := _speedup(result, chosen)) is not None:
        facts.append(("vs fp32", f"{gain:.2g}× as fast"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"""<section class="card"><p class="eyebrow">{escape(profile)}</p>
<p class="big">{escape(chosen.name)}</p><dl>{cells}</dl></section>"""


def _profile(result: OptimizeResult, profile: str) -> str:
    budget = result.budgets[profile]
    candidates = [c for c in result.candidates if c.profile == profile]
    picture = frontier_svg(candidates, budget, result.primary, _floor(result, budget))
    notes = list(dict.fromkeys(note for c in candidates for note in c.notes))
    rows = "".join(_row(result, number, c) for number, c in enumerate(candidates, start=1))
    return f"""<section class="profile" id="{escape(profile)}"><h2>{escape(profile)}</h2>
<p class="chips">{"".join(f"<span>{escape(text)}</span>" for text in _budget(budget))}</p>
{"".join(f'<p class="note">{escape(note)}</p>' for note in notes)}
{f"<figure>{picture}</figure>" if picture else ""}
<div class="scroll"><table><thead><tr><th>#</th><th>variant</th><th>verdict</th>
<th class="n">{_label(result)}</th><th class="n">loss</th><th class="n">p50</th>
<th class="n">p{budget.percentile * 100:g}</th><th class="n">one stream</th>
<th class="n">bundle</th><th class="n">memory</th></tr></thead><tbody>{rows}</tbody></table></div>
{_recall(result, profile)}{_measured(candidates)}</section>"""


def _row(result: OptimizeResult, number: int, candidate: Candidate) -> str:
    timed, accuracy = candidate.measurement, candidate.accuracy
    best = max(result.baselines.values(), default=0.0)
    quality = None if accuracy is None else accuracy.metric(result.primary)
    mark = '<span class="chosen">chosen</span>' if candidate.selected else ""
    frontier = '<span class="tag">frontier</span>' if candidate.on_frontier else ""
    reason = f'<p class="reason">{escape(candidate.reason)}</p>' if candidate.reason else ""
    cells = [
        _percent(quality),
        _DASH if quality is None else f"{max(0.0, best - quality) * 100:.2f}",
        _ms(timed.p50_ms if timed else None),
        _ms(candidate.latency_ms),
        f"{timed.qps:,.0f}/s" if timed else _DASH,
        _kib(candidate.artifact_kib),
        f"{candidate.memory_mib:.0f} MiB" if candidate.memory_mib is not None else _DASH,
    ]
    return f"""<tr class="{"is-chosen" if candidate.selected else ""}"><td class="num">{number}</td>
<td><b>{escape(candidate.name)}</b> {mark}{frontier}
<p class="sub">{escape(candidate.runtime)} · {escape(candidate.precision)}</p>{reason}</td>
<td><span class="verdict {candidate.verdict.lower()}">{candidate.verdict}</span></td>
{"".join(f'<td class="n">{cell}</td>' for cell in cells)}</tr>"""


def _recall(result: OptimizeResult, profile: str) -> str:
    chosen = _selected(result, profile)
    if chosen is None or chosen.accuracy is None:
        return ""
    bars = "".join(
        f'<div class="bar"><span>{escape(label)}</span><i style="--v:{value * 100:.1f}%"></i>'
        f"<b>{_percent(value)}</b></div>"
        for label, value in chosen.accuracy.recall.items()
        if value is not None
    )
    return f"""<details><summary>Recall by class of {escape(chosen.name)}, {chosen.accuracy.n} items
</summary><div class="bars">{bars}</div></details>"""


def _measured(candidates: Sequence[Candidate]) -> str:
    rows = []
    for candidate in candidates:
        for run in (candidate.measurement, candidate.server):
            if run is None:
                continue
            target = f" at {run.target_qps:g} QPS" if run.target_qps else ""
            rows.append(
                f"<tr><td>{escape(candidate.name)}</td><td>{run.scenario}{target}</td>"
                f"<td>{run.verdict}</td><td class='n'>{run.queries:,}</td>"
                f"<td class='n'>{run.over_limit}</td><td class='n'>{run.duration_s:.1f} s</td>"
                f"<td class='n'>{run.canary_ratio:.2f}</td><td class='n'>{run.runs}</td>"
                f"<td class='n'>{run.load_per_core:.2f}</td>"
                f"<td>{escape(run.provenance.get('threads', _DASH))}</td></tr>"
            )
    if not rows:
        return ""
    return f"""<details><summary>How it was measured</summary>
<p class="sub">Latency runs from the moment a request was due. A percentile holds when the number of
slower requests proves it with 99 % confidence. Canary is a fixed piece of work between requests:
far above 1, somebody else used the machine.</p>
<div class="scroll"><table class="small"><thead><tr>
<th>variant</th><th>scenario</th><th>outcome</th>
<th class="n">requests</th><th class="n">over limit</th><th class="n">time</th>
<th class="n">canary</th><th class="n">runs</th><th class="n">load/core</th><th>threads</th></tr>
</thead><tbody>{"".join(rows)}</tbody></table></div></details>"""


def _environment(result: OptimizeResult) -> str:
    facts: Iterable[tuple[str, str]] = (*result.environment.items(), ("seed", str(result.seed)))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return f"""<section class="profile"><h2>Where these figures come from</h2>
<p class="sub">Accuracy and latency were found on this machine, through the pipeline that devices
run. Times of two machines cannot be compared; times within this report can.</p>
<dl class="facts">{cells}</dl></section>"""


def _budget(budget: Budget) -> list[str]:
    """Each bound of the budget in a few words."""
    words = []
    if budget.latency_ms is not None:
        words.append(f"p{budget.percentile * 100:g} ≤ {budget.latency_ms:g} ms")
    if budget.qps is not None:
        words.append(f"at {budget.qps:g} QPS")
    if budget.memory_mib is not None:
        words.append(f"memory ≤ {budget.memory_mib:g} MiB")
    if budget.artifact_kib is not None:
        words.append(f"bundle ≤ {budget.artifact_kib:g} KiB")
    if budget.max_accuracy_drop_points is not None:
        words.append(f"loss ≤ {budget.max_accuracy_drop_points:g} points")
    words += [f"{name.replace('_', '-')} ≥ {v:g}" for name, v in budget.min_accuracy.items()]
    words += [f"recall of {label} ≥ {v:g}" for label, v in budget.min_recall.items()]
    if budget.replicas is not None:
        words.append(f"{budget.replicas} replicas per device")
    if budget.prefer is not None:
        words.append(f"prefer {budget.prefer}")
    return words or ["no bounds"]


def _floor(result: OptimizeResult, budget: Budget) -> float | None:
    """The smallest primary metric that the budget allows."""
    floors = []
    if budget.max_accuracy_drop_points is not None and result.baselines:
        floors.append(max(result.baselines.values()) - budget.max_accuracy_drop_points / 100)
    if (floor := budget.min_accuracy.get(result.primary)) is not None:
        floors.append(floor)
    return max(floors, default=None)


def _speedup(result: OptimizeResult, chosen: Candidate) -> float | None:
    """Median latency of the same member in fp32 on ONNX Runtime over that of the chosen."""
    for other in result.candidates:
        same = other.profile == chosen.profile and other.member == chosen.member
        if same and other.recipe == "fp32" and other.name != chosen.name:
            if other.measurement is None or chosen.measurement is None:
                return None
            return other.measurement.p50_ms / chosen.measurement.p50_ms
    return None


def _selected(result: OptimizeResult, profile: str) -> Candidate | None:
    return next((c for c in result.candidates if c.profile == profile and c.selected), None)


def _label(result: OptimizeResult) -> str:
    return result.primary.replace("_", "-")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{value * 100:.2f} %"


def _ms(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g} ms"


def _kib(value: float | None) -> str:
    if value is None:
        return _DASH
    return f"{value:,.0f} KiB" if value < 10_240 else f"{value / 1024:,.1f} MiB"
