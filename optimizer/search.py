"""The search: every member, by every recipe and way to run it, on every profile, by its budget.

Owns the order of work and the choice.  Which points are looked at how carefully is `rungs`' part,
what a candidate is worth `judging`'s, the choice `frontier`'s and `confirm`'s.

Rules:
    * Accuracy drop is counted from the best member before any recipe, so that choosing a smaller
      member counts as a loss too.
    * One profile's failure does not hide another's result: see `OptimizeResult.require_budgets`.
    * Finished work is in the cache before the next begins: a search that was stopped goes on where
      it was, and nothing is done twice.
    * A search that has a time limit begins nothing after it, and judges what it has.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from edge_agent.runtime import available, cpu_flags
from edge_agent.wire.manifest import StepSpec
from optimizer.cache import Cache
from optimizer.errors import DiskFull, OptimizerError, SearchInterrupted
from optimizer.frontier import mark, nearest_miss
from optimizer.judging import CandidateJudge
from optimizer.making import Workshop, package_versions
from optimizer.passes import find, recipes
from optimizer.profile_search import Deadline, Found, ProfileSearch, Steps
from optimizer.profiles import PROFILE_DIRECTORY, load_profile
from optimizer.reference import Reference, refer
from optimizer.space import USUAL, Axes, Choice, grid, labels
from optimizer.task import OptimizeResult, OptimizeTask, Progress
from optimizer.timing import LocalMeasurer, Measurer

log = logging.getLogger("skerry.optimizer")

_OWN_CACHE: Final = ".cache"

Report = Callable[[Progress], None]


def optimize(
    task: OptimizeTask,
    *,
    progress: Report = lambda _: None,
    measurer: Measurer | None = None,
    profile_directory: Path = PROFILE_DIRECTORY,
    clock: Callable[[], float] = time.monotonic,
) -> OptimizeResult:
    """Search for the best variant of each profile.

    Args:
        progress: called before each step; a search is cancelled by raising from it.
        measurer: where candidates are timed; this machine where `None`.
        clock: seconds, for the time limit and the time left.

    Raises:
        OptimizerError: the task has no members or no profiles.
        UnknownProfile: the task names a profile that there is no file for.
        UnknownRecipe: the task names a recipe that does not exist.
        EvaluationFailed: a member does not answer the data even before any recipe.
        ExportFailed: a member's file is not an ONNX network.
        DiskFull: there is no room for the bundles.
        SearchInterrupted: Ctrl-C; what is finished is kept where the task has a cache.
    """
    if not task.members or not task.profiles:
        raise OptimizerError("there is nothing to optimise: no members or no profiles")
    profiles = [load_profile(name, profile_directory) for name in task.profiles]
    choices = _choices(task)
    started = clock()
    with _cache(task) as cache:
        workshop = Workshop(task, cache)
        axes = task.axes or (USUAL if task.quick else Axes())
        plans = [
            grid(
                profile,
                [member.name for member in task.members],
                choices,
                axes,
                rate=task.profiles[profile.name].qps is not None,
            )
            for profile in profiles
        ]
        steps = Steps(progress, clock, task.time_limit_s)
        steps.plan(len(task.members), [len(points) for points in plans], task.exhaustive)
        references: dict[str, Reference] = {}
        for member in task.members:
            steps.next(f"{member.name}: reference answers in fp32")
            references[member.name] = refer(task, member, workshop)
        found: dict[str, Found] = {}
        for index, (profile, points) in enumerate(zip(profiles, plans, strict=True)):
            steps.enter(index)
            judge = CandidateJudge(task, profile, measurer or LocalMeasurer(), workshop, references)
            deadline = Deadline.share(clock, started, task.time_limit_s, len(profiles) - index)
            found[profile.name] = ProfileSearch(judge, points, steps, deadline).run()
    progress(Progress(fraction=1.0, text="done", left_s=0.0))
    return _result(task, references, found, clock() - started)


def _choices(task: OptimizeTask) -> list[Choice]:
    """The recipes of the task, all of them where it names none.

    Raises:
        UnknownRecipe: there is no such recipe.
        RecipeFailed: a config does not fit.
    """
    steps = task.recipes or tuple(StepSpec(name=name) for name in recipes())
    return [
        Choice(step, find(step.name, step.config).runtimes, label)
        for step, label in zip(steps, labels(steps), strict=True)
    ]


@contextlib.contextmanager
def _cache(task: OptimizeTask) -> Iterator[Cache]:
    """The task's cache, or one that ends with the search; says what an interruption leaves."""
    directory = task.cache_dir or task.out_dir / _OWN_CACHE
    try:
        yield Cache(directory)
    except KeyboardInterrupt as error:
        kept = f"finished work is kept in {directory}: the same search goes on from there"
        raise SearchInterrupted(
            f"stopped; {kept if task.cache_dir else 'nothing is kept without a cache'}"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull.at(directory) from error
        raise
    finally:
        if task.cache_dir is None:
            shutil.rmtree(directory, ignore_errors=True)


def _result(
    task: OptimizeTask,
    references: Mapping[str, Reference],
    found: Mapping[str, Found],
    duration_s: float,
) -> OptimizeResult:
    marked = {
        name: mark(each.candidates, task.primary, each.chosen) for name, each in found.items()
    }
    selected = {c.profile: c.name for group in marked.values() for c in group if c.selected}
    unmet = {
        name: nearest_miss(name, group) for name, group in marked.items() if name not in selected
    }
    for line in unmet.values():
        log.warning("optimize.budget_not_met %s", line)
    return OptimizeResult(
        model=task.model,
        version=task.version,
        primary=task.primary,
        quick=task.quick,
        seed=task.seed,
        budgets=dict(task.profiles),
        baselines={n: r.accuracy.metric(task.primary) for n, r in references.items()},
        candidates=tuple(candidate for group in marked.values() for candidate in group),
        selected=selected,
        unmet=unmet,
        environment=_environment(),
        points=sum(each.points for each in found.values()),
        measured=sum(each.measured for each in found.values()),
        duration_s=duration_s,
        notes=task.notes,
    )


def _environment() -> dict[str, str]:
    """Versions and CPU flags, so that figures can be traced to what gave them."""
    return {
        "machine": platform.machine(),
        "cpu_flags": " ".join(cpu_flags()),
        "python": platform.python_version(),
        **available(),
        **package_versions(),
    }
