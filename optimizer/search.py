"""The search: every member, by every recipe, on every profile, judged by the profile's budget.

Owns the order of work and the choice.

Rules:
    * Accuracy drop is counted from the best member before any recipe, so that choosing a smaller
      member counts as a loss too.
    * One profile's failure does not hide another's result: see `OptimizeResult.require_budgets`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.runtime import available, cpu_flags
from edge_agent.wire.manifest import StepSpec
from optimizer.errors import OptimizerError
from optimizer.frontier import mark, nearest_miss
from optimizer.judging import CandidateJudge
from optimizer.passes import Recipe, find, recipes
from optimizer.profiles import PROFILE_DIRECTORY, HardwareProfile, load_profile
from optimizer.reference import Reference, refer
from optimizer.task import Candidate, OptimizeResult, OptimizeTask, Progress
from optimizer.timing import LocalMeasurer, Measurer

log = logging.getLogger("skerry.optimizer")

_PACKAGES: Final = ("numpy", "onnx", "torch", "nncf")

Report = Callable[[Progress], None]


def optimize(
    task: OptimizeTask,
    *,
    progress: Report = lambda _: None,
    measurer: Measurer | None = None,
    profile_directory: Path = PROFILE_DIRECTORY,
) -> OptimizeResult:
    """Search for the best variant of each profile.

    Args:
        progress: called before each step; a search is cancelled by raising from it.
        measurer: where candidates are timed; this machine where `None`.

    Raises:
        OptimizerError: the task has no members or no profiles.
        UnknownProfile: the task names a profile that there is no file for.
        UnknownRecipe: the task names a recipe that does not exist.
        EvaluationFailed: a member does not answer the data even before any recipe.
        ExportFailed: a member's file is not an ONNX network.
    """
    if not task.members or not task.profiles:
        raise OptimizerError("there is nothing to optimise: no members or no profiles")
    profiles = [load_profile(name, profile_directory) for name in task.profiles]
    wanted = task.recipes or tuple(StepSpec(name=name) for name in recipes())
    plan = [
        _Item(profile, index, recipe)
        for profile in profiles
        for index in range(len(task.members))
        for recipe in (find(step.name, step.config) for step in wanted)
        if recipe.runtime in profile.runtimes
    ]
    steps = _Steps(len(task.members) + len(plan), progress)
    references = []
    for member in task.members:
        steps.next(f"{member.name}: reference answers in fp32")
        references.append(refer(task, member))
    baseline = max(reference.accuracy.metric(task.primary) for reference in references)
    judge = CandidateJudge(task, measurer or LocalMeasurer(), baseline)
    candidates: dict[str, list[Candidate]] = {profile.name: [] for profile in profiles}
    for item in plan:
        reference = references[item.member]
        steps.next(f"{item.profile.name}: {reference.member.name}/{item.recipe.name}")
        candidates[item.profile.name].append(judge.judge(item.profile, reference, item.recipe))
    progress(Progress(fraction=1.0, text="done"))
    return _result(task, references, candidates)


@dataclass(frozen=True)
class _Item:
    profile: HardwareProfile
    member: int
    recipe: Recipe


class _Steps:
    def __init__(self, count: int, progress: Report) -> None:
        self._count, self._done, self._progress = max(count, 1), 0, progress

    def next(self, text: str) -> None:
        self._progress(Progress(fraction=self._done / self._count, text=text))
        self._done += 1


def _result(
    task: OptimizeTask,
    references: Sequence[Reference],
    candidates: Mapping[str, Sequence[Candidate]],
) -> OptimizeResult:
    marked = {name: mark(found, task.primary) for name, found in candidates.items()}
    selected = {c.profile: c.name for found in marked.values() for c in found if c.selected}
    unmet = {
        name: nearest_miss(name, found) for name, found in marked.items() if name not in selected
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
        baselines={r.member.name: r.accuracy.metric(task.primary) for r in references},
        candidates=tuple(candidate for found in marked.values() for candidate in found),
        selected=selected,
        unmet=unmet,
        environment=_environment(),
    )


def _environment() -> dict[str, str]:
    """Versions and CPU flags, so that figures can be traced to what gave them."""
    found = {
        "machine": platform.machine(),
        "cpu_flags": " ".join(cpu_flags()),
        "python": platform.python_version(),
        **available(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
