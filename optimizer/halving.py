"""Successive halving over the members of a family: little training for many, much for the best.

    race = Race(rules, entrants)
    while due := race.due(results):
        for training in due:
            results.append(train(training))     # goes on from the member's state of the last rung

Every member is trained for a few epochs, the best of each profile for some more, and so on; what is
left at the end has been trained in full.

Owns the decision who is trained, how far, and why another is not.

Rules:
    * Pure: what is due follows from the rules, the entrants and the results so far, in whatever
      order they came.  So a search that was killed goes on where it was.
    * A member that cannot meet the budget of a profile even with the best recipe is no choice
      there; one that is no choice anywhere is not trained at all.  What is unknown excludes nobody.
    * Each profile keeps its own best, the best being the fronts of accuracy against latency, and
      always one that meets the budget as it is, if there is one.  A member goes on while any
      profile keeps it.

Source: Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016; the fronts as in Schmucker et al., "Multi-objective Asynchronous
Successive Halving", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

_MAX_RUNGS: Final = 16


class HalvingSpec(BaseModel):
    """How a project asks for it.

    Attributes:
        first_epochs: of every member.
        keep: share of a profile's members that each rung leaves.
        best_speedup: no recipe makes a network more often faster than its plain export.  On an AMX
            machine OpenVINO's int8 was 15 times faster than ONNX Runtime's fp32 (ResNet-18).
        best_shrink: no recipe makes its file smaller than this part; int4 is an eighth of fp32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_epochs: int = Field(default=2, ge=1, le=10_000)
    keep: float = Field(default=0.5, ge=0.1, le=0.9)
    best_speedup: float = Field(default=16.0, ge=1.0)
    best_shrink: float = Field(default=8.0, ge=1.0)

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Epochs that a member has been trained at the end of each rung; the last is `epochs`."""
        found: list[int] = []
        reach = float(self.first_epochs)
        while reach < epochs and len(found) < _MAX_RUNGS - 1:
            found.append(int(reach))
            reach = max(reach / self.keep, reach + 1)
        return (*found, epochs)


class Bounds(BaseModel):
    """What a profile's budget says that can be known before training; `None` excludes nobody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_ms: float | None = None
    artifact_kib: float | None = None


class Rules(BaseModel):
    """Everything that decides beside entrants and results.

    Attributes:
        epochs: of a member that is trained in full.
        profiles: bounds by profile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: HalvingSpec = HalvingSpec()
    epochs: int = Field(ge=1)
    profiles: dict[str, Bounds] = Field(min_length=1)

    @property
    def rungs(self) -> tuple[int, ...]:
        return self.spec.rungs(self.epochs)


@dataclass(frozen=True)
class Entrant:
    """A member before it is trained.

    Attributes:
        p50_ms: of the exported, untrained network on this machine; `None` where unknown.
        size_kib: of its file.
        failure: why it has no network; it is not trained then.
    """

    name: str
    p50_ms: float | None = None
    size_kib: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Training:
    """One training: `member` from `after` epochs, 0 for a new network, until `epochs`."""

    member: str
    after: int
    epochs: int


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        metric: the project's primary metric on held-out rows, 0..1; `None` where it failed.
        failure: why it did.
    """

    member: str
    epochs: int
    metric: float | None
    failure: str = ""


@dataclass(frozen=True)
class Race:
    """Successive halving among `entrants`."""

    rules: Rules
    entrants: tuple[Entrant, ...]

    def due(self, results: Iterable[Trained]) -> tuple[Training, ...]:
        """Trainings of the lowest rung that is not complete; empty when all is done."""
        known = _by_epochs(results)
        after = 0
        for epochs, names in self._rungs(known):
            missing = [name for name in names if name not in known.get(epochs, {})]
            if missing:
                return tuple(Training(name, after, epochs) for name in missing)
            after = epochs
        return ()

    def survivors(self, results: Iterable[Trained]) -> tuple[str, ...]:
        """Members that are trained in full, once nothing is due; in the order of the entrants."""
        last = _by_epochs(results).get(self.rules.epochs, {})
        return tuple(
            one.name
            for one in self.entrants
            if one.name in last and last[one.name].metric is not None
        )

    def left_out(self, results: Iterable[Trained]) -> dict[str, str]:
        """Why each other member is not among the survivors, one line each."""
        known = _by_epochs(results)
        reasons: dict[str, str] = {}
        for one in self.entrants:
            if one.failure:
                reasons[one.name] = one.failure
            elif not self._choice_of(one):
                reasons[one.name] = "not trained: " + "; ".join(
                    f"{profile}: {self._hopeless(one, profile)}" for profile in self.rules.profiles
                )
        for epochs in self.rules.rungs:
            for name, result in known.get(epochs, {}).items():
                if result.metric is None:
                    reasons[name] = f"training failed: {result.failure}"
                elif epochs < self.rules.epochs:
                    reasons[name] = (
                        f"left behind after {epochs} of {self.rules.epochs} epochs "
                        f"at {result.metric:.3f}"
                    )
                else:
                    reasons.pop(name, None)
        return reasons

    def _rungs(
        self, known: Mapping[int, Mapping[str, Trained]]
    ) -> Iterable[tuple[int, Sequence[str]]]:
        """The members of each rung, as far as the results of the one before tell."""
        names = [one.name for one in self.entrants if self._choice_of(one)]
        for rung, epochs in enumerate(self.rules.rungs):
            yield epochs, names
            kept: set[str] = set()
            for profile in self.rules.profiles:
                kept |= self._kept(profile, rung + 1, known.get(epochs, {}))
            names = [name for name in names if name in kept]

    def _kept(self, profile: str, rungs: int, results: Mapping[str, Trained]) -> set[str]:
        """Who goes on for the sake of `profile` after so many rungs."""
        choices = [one for one in self.entrants if profile in self._choice_of(one)]
        count = max(1, math.ceil(len(choices) * self.rules.spec.keep**rungs - 1e-9))
        metrics = {name: r.metric for name, r in results.items() if r.metric is not None}
        ranked = _by_fronts([one for one in choices if one.name in metrics], metrics)
        kept = ranked[:count]
        meeting = [one for one in ranked if self._meets(one, profile)]
        if kept and meeting and not any(self._meets(one, profile) for one in kept):
            best = max(meeting, key=lambda one: metrics[one.name])
            kept = [*kept[:-1], best] if count > 1 else [*kept, best]
        return {one.name for one in kept}

    def _choice_of(self, one: Entrant) -> frozenset[str]:
        """Profiles whose budget the member may meet."""
        if one.failure:
            return frozenset()
        return frozenset(name for name in self.rules.profiles if not self._hopeless(one, name))

    def _hopeless(self, one: Entrant, profile: str) -> str:
        """Which bound the member cannot meet by any recipe; empty where it may."""
        bounds, spec = self.rules.profiles[profile], self.rules.spec
        for value, bound, factor, unit in (
            (one.p50_ms, bounds.latency_ms, spec.best_speedup, "ms"),
            (one.size_kib, bounds.artifact_kib, spec.best_shrink, "KiB"),
        ):
            if value is not None and bound is not None and value / factor > bound:
                return f"{value:.4g} {unit} is more than {factor:g} times {bound:g} {unit}"
        return ""

    def _meets(self, one: Entrant, profile: str) -> bool:
        """Whether the plain export meets what is known of the budget."""
        bounds = self.rules.profiles[profile]
        return (
            bounds.latency_ms is None
            or (one.p50_ms is not None and one.p50_ms <= bounds.latency_ms)
        ) and (
            bounds.artifact_kib is None
            or (one.size_kib is not None and one.size_kib <= bounds.artifact_kib)
        )


def _by_epochs(results: Iterable[Trained]) -> dict[int, dict[str, Trained]]:
    found: dict[int, dict[str, Trained]] = {}
    for result in results:
        found.setdefault(result.epochs, {})[result.member] = result
    return found


def _by_fronts(entrants: Sequence[Entrant], metrics: Mapping[str, float]) -> list[Entrant]:
    """Members by non-dominated fronts of metric against latency, best metric of each first.

    A member of unknown latency counts as slow as can be.
    """

    def cost(one: Entrant) -> float:
        return math.inf if one.p50_ms is None else one.p50_ms

    def beaten(one: Entrant, other: Entrant) -> bool:
        mine, its = metrics[one.name], metrics[other.name]
        no_worse = its >= mine and cost(other) <= cost(one)
        return no_worse and (its > mine or cost(other) < cost(one))

    left, ranked = list(entrants), []
    while left:
        front = [one for one in left if not any(beaten(one, other) for other in left)]
        ranked += sorted(front, key=lambda one: (-metrics[one.name], cost(one), one.name))
        left = [one for one in left if one not in front]
    return ranked
