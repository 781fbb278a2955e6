"""How `skerry optimize` looks: progress with the time that is left, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cloud.cli.output import console, errors, table
from cloud.jobs.executors import Progress as Report
from optimizer import figures
from optimizer.figures import DASH, kib, metric_label, mib, ms, percent
from optimizer.report import HTML_NAME
from optimizer.task import OptimizeResult

_TOO_EARLY: Final = 0.03
"""Below this share nothing can be said of the time that is left."""


@contextmanager
def search_progress(name: str) -> Iterator[Report]:
    """A bar; what is yielded takes the share that is done, a line, and the seconds left."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(name, total=1.0, left="")

        def report(share: float, text: str, left_s: float | None = None) -> None:
            spent = progress.tasks[task].elapsed or 0.0
            if left_s is None and share > _TOO_EARLY:
                left_s = spent * (1 - share) / share
            left = "" if left_s is None else f"{figures.seconds(left_s)} left"
            progress.update(task, description=text or name, completed=share, left=left)

        yield report


def print_result(result: OptimizeResult, output: Path) -> None:
    """A row for each profile, the misses, and where the report is."""
    rows = []
    for profile, budget in result.budgets.items():
        chosen = figures.chosen(result, profile)
        if chosen is None:
            continue
        predicted = " (predicted)" if chosen.predicted else ""
        memory = () if all(c.memory_mib is None for c in result.candidates) else (
            mib(chosen.memory_mib),
        )  # fmt: skip
        rows.append(
            (
                profile,
                chosen.name + predicted,
                f"p{budget.percentile * 100:g} {ms(chosen.latency_ms)}",
                percent(figures.quality(result, chosen)),
                kib(chosen.artifact_kib),
                *memory,
                figures.speedup_words(chosen) or DASH,
            )
        )
    if rows:
        memory_column = ("memory",) if len(rows[0]) == 7 else ()
        table(
            f"{result.model}: chosen",
            (
                "profile", "variant", "latency", metric_label(result), "bundle", *memory_column,
                "vs fp32, timed in turns",
            ),
            rows,
        )  # fmt: skip
    for line in result.unmet.values():
        errors.print(f"skerry: {line}", markup=False, soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if result.points:
        console.print(
            f"{result.measured} of {figures.count(result.points, 'point')} measured in full, "
            f"in {figures.seconds(result.duration_s)}",
            highlight=False,
        )
    console.print(
        f"report: {output / HTML_NAME}   why: skerry optimize --explain {output}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
