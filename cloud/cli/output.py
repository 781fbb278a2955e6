"""How the command looks: tables, times, progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fleet.client.schemas import JobOut, Page

PIPED_WIDTH = 200
"""Columns of a table that no terminal shows: wide enough to cut nothing."""

console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True)

JOB_POLL_S = 0.4
FINISHED = frozenset({"succeeded", "failed", "cancelled"})


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table, or say that there are none."""
    result = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        # the first column is what other commands are given: never broken into two lines
        result.add_column(name, overflow="fold", no_wrap=number == 0)
    count = 0
    for row in rows:
        result.add_row(*[str(cell) for cell in row])
        count += 1
    if count:
        console.print(result)
    else:
        console.print(f"{title}: none yet")


def page_title(what: str, page: Page) -> str:
    """What a table shows of how many: "rollouts 1–100 of 230", or just the name."""
    items = len(getattr(page, "items", ()))
    if not items or items == page.total:
        return what
    return f"{what} {page.offset + 1}–{page.offset + items} of {page.total}"


def as_json(value: BaseModel | Sequence[BaseModel]) -> None:
    """Print a schema, or a list of them, as JSON for scripts."""
    if isinstance(value, BaseModel):
        console.print_json(value.model_dump_json())
    else:
        console.print_json(json.dumps([item.model_dump(mode="json") for item in value]))


def when(seconds: float) -> str:
    """Local time of an epoch time; a dash for never."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "–"


def watch_job(
    fetch: Callable[[], JobOut], *, sleep: Callable[[float], None] = time.sleep
) -> JobOut:
    """Show a job's progress until it has ended; returns its last state."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("queued", total=1.0)
        while True:
            job = fetch()
            label = f"{job.kind} {job.project}: {job.step or job.state}"
            progress.update(task, description=label, completed=job.progress)
            if job.state in FINISHED:
                return job
            sleep(JOB_POLL_S)
