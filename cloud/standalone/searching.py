"""Running a search from this process: the child is started, watched, and ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from cloud.errors import OperatorError, UserError
from cloud.jobs.errors import ChildDied, JobError
from cloud.jobs.executors import LocalProcess, Progress
from cloud.lab.access import ControlPlane, lab_request
from cloud.standalone.output_directory import Output
from edge_agent.wire.manifest import StepSpec
from optimizer.budget import Budget, MetricName
from optimizer.model_file import NetworkRows
from optimizer.task import OptimizeResult


@dataclass(frozen=True)
class Wishes:
    """How a search is to be done; `None` leaves it to the project, or to the default.

    Attributes:
        profiles: those of a project to search for; empty for all.
        recipes: empty for those of the project, or for all.
        on: lab devices to measure on, "device:ID" or "group:NAME"; empty for this machine.
        plane: the control plane that they are asked through.
    """

    profiles: tuple[str, ...] = ()
    recipes: tuple[StepSpec, ...] = ()
    quick: bool | None = None
    exhaustive: bool = False
    time_limit_s: float | None = None
    seed: int | None = None
    on: str = ""
    plane: ControlPlane | None = None


def search_model(
    network: NetworkRows,
    rows: Path,
    budgets: Mapping[str, Budget],
    wishes: Wishes,
    output: Output,
    progress: Progress,
    primary: MetricName | None = None,
    recipe_code: Path | None = None,
) -> OptimizeResult:
    """The best variants of a network that stands alone.

    Args:
        rows: the file that `network` was read with.
        recipe_code: Python that registers further recipes.

    Raises:
        UserError: the search says what is wrong.
        OperatorError: its process died.
    """
    output.clear()
    labels = output.work / "labels.npy"
    np.save(labels, network.labels)
    request: dict[str, JsonValue] = {
        "network": str(network.path.resolve()),
        "rows": str(rows.resolve()),
        "inputs": [spec.name for spec in network.interface.inputs],
        "labels": str(labels),
        "output": network.output,
        "names": list(network.names),
        "agreement": network.agreement,
        "profiles": {name: budget.model_dump(mode="json") for name, budget in budgets.items()},
        "recipes": [step.model_dump(mode="json") for step in wishes.recipes],
        "recipe_code": None if recipe_code is None else str(recipe_code.resolve()),
        "primary": primary,
        "quick": bool(wishes.quick),
        "exhaustive": wishes.exhaustive,
        "time_limit_s": wishes.time_limit_s,
        "seed": wishes.seed or 0,
        "out": str(output.root),
        "cache_dir": str(output.search_cache),
    }
    with lab_of(wishes, output) as lab:
        told = {**request, "lab": lab}
        return OptimizeResult.model_validate(run_child("optimize-model", told, output, progress))


@contextmanager
def lab_of(wishes: Wishes, output: Output) -> Iterator[JsonValue]:
    """What a child is told of the lab; the file with the token goes with the block."""
    if wishes.plane is None:
        yield None
        return
    token = output.work / "lab-token"
    try:
        yield lab_request(wishes.plane, wishes.on, token)
    finally:
        token.unlink(missing_ok=True)


def run_child(
    task: str, request: Mapping[str, JsonValue], output: Output, progress: Progress
) -> dict[str, JsonValue]:
    """Run a task of `cloud.jobs.child` to its end.

    Raises:
        UserError, OperatorError: see `search_model`.
    """
    try:
        return executor(output).run(
            task, request, output.work, output.log, progress=progress, cancelled=lambda: False
        )
    except JobError as error:
        raise as_told(error, output) from error


def executor(output: Output) -> LocalProcess:
    """Runs children with every core: nothing else is to be kept awake here."""
    return LocalProcess(output.cache / "heavy.lock", threads=len(os.sched_getaffinity(0)))


def as_told(error: JobError, output: Output) -> UserError | OperatorError:
    """The error as somebody is told who started the search."""
    if isinstance(error, ChildDied):
        return OperatorError(f"{error} in {output.root}")
    return UserError(str(error))
