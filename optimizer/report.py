"""The report of a search: one HTML file that needs nothing else, and the same facts as JSON.

Owns the page and its order.  Every candidate is listed with its verdict and why, chosen or not, and
every figure with what it was taken on.  Text that comes from a project is escaped.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from optimizer import figures
from optimizer.errors import OptimizerError
from optimizer.explain import sections
from optimizer.figures import count, kib, metric_label, ms, percent, times
from optimizer.histogram import histogram_svg
from optimizer.picture import frontier_svg, legend
from optimizer.report_details import by_class, environment, runs
from optimizer.report_style import SCRIPT, STYLE
from optimizer.report_table import candidate_table
from optimizer.task import OptimizeResult

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"

_MAX_BYTES: Final = 200_000_000


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


def read_report(path: Path) -> OptimizeResult:
    """What `write_report` wrote: a `report.json`, or the directory that it is in.

    Raises:
        OptimizerError: it is no such file.
        OSError: there is none.
    """
    path = path / JSON_NAME if path.is_dir() else path
    if path.stat().st_size > _MAX_BYTES:
        raise OptimizerError(f"{path} is too large for a report of the optimizer")
    return parse_report(path.read_bytes(), str(path))


def parse_report(data: bytes | str, name: str) -> OptimizeResult:
    """The result in the JSON text `data`.

    Args:
        name: what an error calls it.

    Raises:
        OptimizerError: it is none.
    """
    try:
        return OptimizeResult.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f"{place}: " if place else ""
        raise OptimizerError(
            f"{name} is no JSON report of the optimizer: {where}{first['msg']}"
        ) from error


def render(result: OptimizeResult) -> str:
    """The report as one HTML document."""
    title = f"{result.model} · version {result.version}"
    quick = '<span class="tag">quick measurement</span>' if result.quick else ""
    profiles = "".join(_profile(result, name) for name in result.budgets)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in result.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} – optimisation</title><style>{STYLE}</style></head>
<body><main>
<header><p class="eyebrow">Optimisation report</p><h1>{escape(title)} {quick}</h1>
<p class="lead">{_lead(result)}</p></header>{notes}
<div class="cards">{"".join(_card(result, name) for name in result.budgets)}</div>
{profiles}
{environment(result)}
</main><script>{SCRIPT}</script></body></html>
"""


def _lead(result: OptimizeResult) -> str:
    variants = count(len(result.candidates), "variant")
    found = [f"{variants} on {count(len(result.budgets), 'hardware profile')}."]
    if result.points:
        found.append(
            f"Of {count(result.points, 'different one')} {result.measured:,} were measured in "
            f"full, in {figures.seconds(result.duration_s)}."
        )
    if not result.agreement:
        members = ", ".join(
            f"{escape(name)} {percent(value)}" for name, value in result.baselines.items()
        )
        best = percent(figures.best_baseline(result))
        found.append(
            f"Before any recipe {metric_label(result)} is {members}; "
            f"losses are counted from {best}."
        )
    return " ".join(found)


def _card(result: OptimizeResult, profile: str) -> str:
    chosen = figures.chosen(result, profile)
    if chosen is None or chosen.accuracy is None:
        return f"""<a class="card missed" href="#{escape(profile)}">
<p class="eyebrow">{escape(profile)}</p>
<p class="big">Budget not met</p><p>{escape(result.unmet.get(profile, ""))}</p></a>"""
    facts = [
        (f"p{result.budgets[profile].percentile * 100:g}", ms(chosen.latency_ms)),
        (metric_label(result), percent(chosen.accuracy.metric(result.primary))),
        ("bundle", kib(chosen.artifact_kib)),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    predicted = '<span class="tag warn">predicted</span>' if chosen.predicted else ""
    compared = chosen.comparison
    proof = ""
    if compared is not None:
        proof = f"""<p class="proof"><b>{times(compared.speedup)}</b> as fast as fp32
<small>99 % sure of {compared.low:.2f} to {compared.high:.2f}, {count(compared.pairs, "pair")} timed
in turns</small></p>"""
    return f"""<a class="card" href="#{escape(profile)}"><p class="eyebrow">{escape(profile)}</p>
<p class="big">{escape(chosen.name)} {predicted}</p>{proof}<dl>{cells}</dl></a>"""


def _profile(result: OptimizeResult, profile: str) -> str:
    candidates = figures.of_profile(result, profile)
    picture = frontier_svg(result, profile)
    figure = ""
    if picture:
        figure = (
            f'<figure class="scroll">{picture}</figure>'
            f'<p class="legend">{legend(result, profile)}</p>'
        )
    chips = "".join(
        f"<span>{escape(text)}</span>" for text in figures.budget_words(result.budgets[profile])
    )
    timed = [c for c in candidates if c.measurement is not None] or candidates
    first = timed[0].notes if timed else ()
    shared = [note for note in first if all(note in c.notes for c in timed)]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in shared)
    return f"""<section class="profile" id="{escape(profile)}"><h2>{escape(profile)}</h2>
<p class="chips">{chips}</p>{notes}{figure}
{candidate_table(result, profile, frozenset(shared))}
{_why(result, profile)}{_spread(result, profile)}{by_class(result, profile)}
{runs(candidates)}</section>"""


def _why(result: OptimizeResult, profile: str) -> str:
    parts = "".join(
        f"<h3>{escape(section.title)}</h3>"
        + "".join(f"<p>{escape(line)}</p>" for line in section.lines)
        for section in sections(result, profile)
    )
    return f'<details open><summary>Why</summary><div class="why">{parts}</div></details>'


def _spread(result: OptimizeResult, profile: str) -> str:
    chosen, plain = figures.chosen(result, profile), figures.plain(result, profile)
    if chosen is None or chosen.measurement is None:
        return ""
    other = plain if plain is not None and plain is not chosen else None
    timed = other.measurement if other else None
    drawn = histogram_svg(chosen.measurement, timed, result.budgets[profile].latency_ms)
    if not drawn:
        return ""
    keys = f'<span><i class="dot chosen-run"></i>{escape(chosen.name)}</span>'
    if other is not None and timed is not None and timed.histogram:
        keys += f'<span><i class="dot plain-run"></i>{escape(other.name)}</span>'
    return f"""<details open><summary>Latencies of {escape(chosen.name)}</summary>
<figure class="scroll">{drawn}</figure><p class="legend">{keys}<span>lines: medians of runs apart;
how much faster it is stands above, timed in turns</span></p></details>"""
