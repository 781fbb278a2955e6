"""The part of a workflow that trains: members one after another or in a race, then what is derived.

As everything in a workflow it only calls steps and decides by their results, so that it comes to
the same decisions when it is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloud.jobs.cache import Result
from cloud.jobs.durable import Run, run_step
from cloud.jobs.errors import StepFailed
from cloud.jobs.networks import NetworkSteps
from cloud.jobs.plan import Plan
from cloud.jobs.workplace import Workplace
from optimizer.derive import Sized, planned
from optimizer.halving import Entrant, Race, Rules, Trained


@dataclass(frozen=True)
class Members:
    """Trained members.

    Attributes:
        trained: the answer of each one's last training; of a derived one also its `base` and
            `notes`.
        notes: a line for each that is not among them.
    """

    trained: Mapping[str, Result]
    notes: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> dict[str, str]:
        """Blobs with the weights, by member."""
        return {name: str(answer["checkpoint_sha"]) for name, answer in self.trained.items()}

    @property
    def bases(self) -> dict[str, str]:
        """By derived member, the member of the family that it was made of."""
        return {n: str(answer["base"]) for n, answer in self.trained.items() if "base" in answer}


def train_members(
    steps: NetworkSteps, place: Workplace, plan: Plan, dataset: str, run: Run = run_step
) -> Members:
    """Train, then derive.

    Args:
        run: runs one step; outside of a workflow `plain_step`.

    Raises:
        StepFailed: a member cannot be trained, or of a race nobody is left.
    """
    if plan.halving is None:
        trained: dict[str, Result] = {
            member: run(f"train:{member}", place, plan.job_id, steps.train, plan, dataset, member)
            for member in plan.members
        }
        notes: tuple[str, ...] = ()
    else:
        trained, notes = _race(plan.halving, steps, place, plan, dataset, run)
    derived, more = _derive(steps, place, plan, dataset, trained, run)
    return Members({**trained, **derived}, (*notes, *more))


def _race(
    rules: Rules, steps: NetworkSteps, place: Workplace, plan: Plan, dataset: str, run: Run
) -> tuple[dict[str, Result], tuple[str, ...]]:
    probed: Any = run("probe", place, plan.job_id, steps.probe, plan, dataset)
    race = Race(rules, tuple(Entrant(**entrant) for entrant in probed["entrants"]))
    answers: dict[str, Result] = {}
    results: list[Trained] = []
    while due := race.due(results):
        rung = rules.rungs.index(due[0].epochs)
        for index, training in enumerate(due):
            member, epochs = training.member, training.epochs
            within = (rung + index / len(due)) / len(rules.rungs), 1 / len(due) / len(rules.rungs)
            state = answers[member]["state_sha"] if training.after else None
            answer = run(
                f"train:{member}@{epochs}", place, plan.job_id, steps.rung, plan, dataset, member,
                epochs, state, within,
            )  # fmt: skip
            answers[member] = answer
            metric: Any = answer.get("metric")
            results.append(Trained(member, epochs, metric, str(answer.get("failure", ""))))
    left_out = tuple(f"{name}: {reason}" for name, reason in race.left_out(results).items())
    survivors = race.survivors(results)
    if not survivors:
        raise StepFailed("no member is left to be trained: " + "; ".join(left_out))
    return {name: answers[name] for name in survivors}, left_out


def _derive(
    steps: NetworkSteps,
    place: Workplace,
    plan: Plan,
    dataset: str,
    trained: Mapping[str, Result],
    run: Run,
) -> tuple[dict[str, Result], tuple[str, ...]]:
    sizes: list[Any] = [answer["parameters"] for answer in trained.values()]
    members = [Sized(name, size) for name, size in zip(trained, sizes, strict=True)]
    wanted, notes = planned(plan.derive, members)
    derived: dict[str, Result] = {}
    failures: list[str] = []
    for index, one in enumerate(wanted):
        checkpoints = {
            name: str(trained[name]["checkpoint_sha"]) for name in {one.parent, one.teacher} - {""}
        }
        within = index / len(wanted), 1 / len(wanted)
        answer = run(
            f"derive:{one.name}", place, plan.job_id, steps.derive, plan, dataset, one,
            checkpoints, within,
        )  # fmt: skip
        if "failure" in answer:
            failures.append(str(answer["failure"]))
        else:
            derived[one.name] = answer
    return derived, (*notes, *failures)
