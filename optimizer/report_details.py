"""The report's details: each class, each run, and where the figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from edge_agent.measure import Measurement
from optimizer import figures
from optimizer.figures import DASH, percent
from optimizer.task import Candidate, OptimizeResult

_MOST_CLASSES: Final = 40


def by_class(result: OptimizeResult, profile: str) -> str:
    """Recall by class of the chosen variant against fp32, the largest loss first."""
    chosen, plain = figures.chosen(result, profile), figures.plain(result, profile)
    if chosen is None or chosen.accuracy is None:
        return ""
    before = {}
    if plain is not None and plain is not chosen and plain.accuracy is not None:
        before = plain.accuracy.recall if plain.accuracy.n == chosen.accuracy.n else {}
    found = [
        (label, value, before.get(label))
        for label, value in chosen.accuracy.recall.items()
        if value is not None
    ]
    found.sort(key=lambda item: item[1] - (item[2] if item[2] is not None else item[1]))
    bars = "".join(_bar(*item) for item in found[:_MOST_CLASSES])
    rest = len(found) - _MOST_CLASSES
    more = f'<p class="sub">and {rest} classes that lose no more than these</p>' if rest > 0 else ""
    against = f" against {escape(plain.name)}" if before and plain is not None else ""
    return f"""<details><summary>Recall by class of {escape(chosen.name)}{against},
{chosen.accuracy.n} items</summary><div class="bars">{bars}</div>{more}</details>"""


def _bar(label: str, value: float, before: float | None) -> str:
    change = ""
    if before is not None:
        points = (value - before) * 100
        kind = "loss" if points < 0 else "gain"
        change = f'<em class="{kind}">{points:+.1f}</em>' if abs(points) > 0.005 else "<em>=</em>"
    mark = "" if before is None else f'<u style="left:{before * 100:.1f}%"></u>'
    return (
        f'<div class="bar"><span>{escape(label)}</span><i style="--v:{value * 100:.1f}%">{mark}</i>'
        f"<b>{percent(value)}</b>{change}</div>"
    )


def runs(candidates: Sequence[Candidate]) -> str:
    """Every run that was measured, with what it was taken on."""
    rows = [
        _run(candidate, run)
        for candidate in candidates
        for run in (candidate.measurement, candidate.server)
        if run is not None
    ]
    if not rows:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("variant", "scenario", "outcome", "where"))
    heads += "".join(
        f'<th class="n">{name}</th>'
        for name in ("requests", "over limit", "time", "canary", "runs", "load/core")
    )
    heads += "".join(f"<th>{name}</th>" for name in ("precision", "threads", "runtime"))
    return f"""<details><summary>How it was measured</summary>
<p class="sub">Latency runs from the moment a request was due. A percentile holds when the number of
slower requests proves it with 99 % confidence. Canary is a fixed piece of work between requests:
far above 1, somebody else used the machine.</p>
<div class="scroll tall"><table class="small sortable"><thead><tr>{heads}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></details>"""


def _run(candidate: Candidate, run: Measurement) -> str:
    target = f" at {run.target_qps:g} QPS" if run.target_qps else ""
    kind = f"{run.scenario}{target}, {figures.fidelity(candidate)}"
    known = run.provenance
    runtime = " ".join(filter(None, (known.get("runtime", ""), known.get("version", ""))))
    where = "predicted" if candidate.predicted else candidate.measured_on or DASH
    numbers = (
        (run.queries, f"{run.queries:,}"),
        (run.over_limit, str(run.over_limit)),
        (run.duration_s, f"{run.duration_s:.1f} s"),
        (run.canary_ratio, f"{run.canary_ratio:.2f}"),
        (run.runs, str(run.runs)),
        (run.load_per_core, f"{run.load_per_core:.2f}"),
    )
    cells = "".join(f'<td class="n" data-v="{value:.9g}">{words}</td>' for value, words in numbers)
    threads = known.get("threads", str(candidate.threads))
    if candidate.instances != 1:
        threads += f" × {candidate.instances}"
    return (
        f"<tr><td>{escape(candidate.name)}</td><td>{escape(kind)}</td><td>{run.verdict}</td>"
        f"<td>{escape(where)}</td>{cells}"
        f"<td>{escape(known.get('precision', candidate.precision))}</td>"
        f"<td>{escape(threads)}</td><td>{escape(runtime)}</td></tr>"
    )


def environment(result: OptimizeResult) -> str:
    """Versions and CPU flags of the machine that evaluated and measured."""
    facts: Iterable[tuple[str, str]] = (*result.environment.items(), ("seed", str(result.seed)))
    cells = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts
    )
    return f"""<section class="profile"><h2>Where these figures come from</h2>
<p class="sub">Accuracy was found on this machine, through the pipeline that devices run; times on
the machine that each run names. Times of two machines, or of two runs apart, cannot be compared;
what was timed in turns can.</p>
<dl class="facts">{cells}</dl></section>"""
