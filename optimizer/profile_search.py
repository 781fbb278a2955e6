"""The search on one profile: points to files, files to looks, looks to one choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from optimizer.confirm import Baseline, confirm
from optimizer.errors import DiskFull, OptimizerError
from optimizer.frontier import ranked, worse
from optimizer.judging import CandidateJudge
from optimizer.reference import FP32
from optimizer.reverting import derive
from optimizer.rungs import SMALL, Look, Rungs
from optimizer.space import Point
from optimizer.task import Candidate, Fidelity, Progress

_SHARE_OF_TIME: Final[dict[Fidelity, float]] = {"probe": 0.5, "quick": 0.7, "full": 0.9}
"""When the last look of a kind may begin: what comes behind it needs its time too."""

_PROGRESS: Final[dict[Fidelity, str]] = {
    "probe": ", a few runs",
    "quick": ", more runs",
    "full": "",
}


@dataclass(frozen=True)
class Found:
    """What a profile's search came to.

    Attributes:
        candidates: one for each point, in their order.
        points: different ones among them; `measured` were measured in full.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    points: int
    measured: int


@dataclass(frozen=True)
class Deadline:
    """Until when a profile's search may begin something.

    Attributes:
        limit_s: of the whole search, for messages; `None` where there is no limit.
    """

    clock: Callable[[], float]
    start: float
    end: float | None = None
    limit_s: float | None = None

    @classmethod
    def share(
        cls, clock: Callable[[], float], started: float, limit_s: float | None, profiles: int
    ) -> Deadline:
        """An equal part of what is left of `limit_s` for each of `profiles` that are to come."""
        now = clock()
        if limit_s is None:
            return cls(clock, now)
        left = max(0.0, started + limit_s - now)
        return cls(clock, now, now + left / profiles, limit_s)

    def allows(self, share: float) -> bool:
        """Whether less than `share` of the time has passed."""
        return self.end is None or self.clock() < self.start + share * (self.end - self.start)


class Steps:
    """Counts steps and reports them; the fraction never falls and reaches 1 only at the end."""

    def __init__(
        self,
        report: Callable[[Progress], None],
        clock: Callable[[], float],
        limit_s: float | None,
    ) -> None:
        self._report, self._clock, self._limit_s = report, clock, limit_s
        self._begin = clock()
        self._start, self._end = 0.0, 1.0
        self._expected, self._done = 1, 0
        self._segments: list[tuple[float, float, int]] = []

    def plan(self, members: int, points: Sequence[int], exhaustive: bool) -> None:
        """Spread the whole over the references and over profiles with so many points."""
        counts = [_expected(number, exhaustive) for number in points]
        total = max(members + sum(counts), 1)
        at = members
        for count in counts:
            self._segments.append((at / total, (at + count) / total, max(count, 1)))
            at += count
        self._start, self._end, self._expected = 0.0, members / total, max(members, 1)

    def enter(self, profile: int) -> None:
        """Begin with the profile of that index."""
        self._start, self._end, self._expected = self._segments[profile]
        self._done = 0

    def next(self, text: str) -> None:
        share = min(self._done / self._expected, 0.99)
        fraction = self._start + (self._end - self._start) * share
        self._done += 1
        self._report(Progress(fraction=fraction, text=text, left_s=self._left_s(fraction)))

    def _left_s(self, fraction: float) -> float | None:
        spent = self._clock() - self._begin
        bound = None if self._limit_s is None else max(0.0, self._limit_s - spent)
        if fraction < 0.03:
            return bound
        left = spent * (1 - fraction) / fraction
        return left if bound is None else min(left, bound)


def _expected(points: int, exhaustive: bool) -> int:
    """Steps of a profile with so many points, about."""
    if exhaustive or points <= SMALL:
        return points
    rungs = Rungs(points, lambda point, fidelity: Look(fidelity, "FAIL"), "speed")
    return points + rungs.quick_limit + rungs.full_limit


def _each_recipe_first(points: Sequence[Point]) -> list[Point]:
    """One point of each member and recipe, then the next of each: time may end before the last."""
    ranks: dict[str, int] = {}
    ordered = []
    for point in points:
        ranks[point.artifact] = ranks.get(point.artifact, -1) + 1
        ordered.append((ranks[point.artifact], point))
    return [point for _, point in sorted(ordered, key=lambda each: each[0])]


class ProfileSearch:
    """Looks at the points of one profile and chooses."""

    def __init__(
        self, judge: CandidateJudge, points: Sequence[Point], steps: Steps, deadline: Deadline
    ) -> None:
        self._judge = judge
        self._points = list(points)
        self._steps = steps
        self._deadline = deadline
        self._candidates: dict[str, Candidate] = {}
        self._distinct: list[Point] = []
        self._twins: dict[str, Point] = {}
        self._compared: dict[tuple[tuple[str, Fidelity], ...], bool] = {}

    def run(self) -> Found:
        task = self._judge.task
        self._prepare()
        rungs = Rungs(
            len(self._distinct),
            self._look,
            self._judge.budget.preference,
            self._worse,
            lambda fidelity: self._deadline.allows(_SHARE_OF_TIME[fidelity]),
            everything=task.exhaustive,
        )
        rungs.climb()
        self._explain(rungs)
        measured = rungs.measured + self._fall_back()
        chosen, more = self._choose()
        for name, point in self._twins.items():
            twin = next(p for p in self._points if self._judge.name(p) == name)
            self._candidates[name] = self._judge.twin(
                twin, self._candidates[self._judge.name(point)]
            )
        return Found(
            candidates=tuple(self._candidates[self._judge.name(p)] for p in self._points),
            chosen=self._candidates[chosen] if chosen else None,
            points=len(self._distinct),
            measured=measured + more,
        )

    def _prepare(self) -> None:
        """Make all files; sort out what cannot be made and what comes to the same."""
        seen: dict[str, Point] = {}
        for point in self._points:
            name = self._judge.name(point)
            if not self._deadline.allows(_SHARE_OF_TIME["probe"]):
                self._candidates[name] = self._judge.blank(
                    point, f"not tried: {self._time_is_up()}", "INCONCLUSIVE"
                )
                continue
            try:
                same = self._judge.same(point)
            except DiskFull:
                raise
            except OptimizerError as error:
                self._candidates[name] = self._judge.blank(point, str(error))
                continue
            if same in seen:
                self._twins[name] = seen[same]
            else:
                seen[same] = point
                self._distinct.append(point)
        self._distinct = _each_recipe_first(self._distinct)

    def _look(self, index: int, fidelity: Fidelity) -> Look:
        point = self._distinct[index]
        name = self._judge.name(point)
        self._steps.next(f"{self._judge.profile.name}: {name}{_PROGRESS[fidelity]}")
        candidate = self._judge.judge(point, fidelity, self._candidates.get(name))
        self._candidates[name] = candidate
        return self._judge.verdicts.look(candidate)

    def _worse(self, one: int, best: int) -> bool:
        """Whether the first is surely less accurate than the second, on the same items."""
        names = [self._judge.name(self._distinct[index]) for index in (one, best)]
        found = [self._candidates[name] for name in names]
        key = tuple((candidate.name, candidate.fidelity) for candidate in found)
        if key not in self._compared:
            first, second = (candidate.accuracy for candidate in found)
            if first is None or second is None or first.n != second.n:
                return False
            labels = self._judge.verdicts.labels(first.n)
            self._compared[key] = worse(first, second, self._judge.task.primary, labels)
        return self._compared[key]

    def _explain(self, rungs: Rungs) -> None:
        """Say of each point that was not measured in full why."""
        for index, point in enumerate(self._distinct):
            name = self._judge.name(point)
            candidate = self._candidates.get(name)
            if candidate is None:
                self._candidates[name] = self._judge.blank(
                    point, f"not tried: {self._time_is_up()}", "INCONCLUSIVE"
                )
            elif candidate.fidelity != "full" and candidate.verdict == "INCONCLUSIVE":
                better = rungs.beaten_by.get(index)
                why = self._time_is_up()
                if rungs.gave_up:
                    why = "those before it could not be decided"
                if better is not None:
                    why = f"{self._judge.name(self._distinct[better])} promises more"
                self._candidates[name] = candidate.model_copy(
                    update={"reason": f"not measured in full: {why}"}
                )

    def _fall_back(self) -> int:
        """Leave layers in fp32 where int8 would be fastest and only its answers are too bad.

        Returns:
            Points that were measured for that.
        """
        found = self._worth_reverting()
        if found is None or not self._deadline.allows(_SHARE_OF_TIME["quick"]):
            return 0
        point, judge = found, self._judge
        before = self._candidates[judge.name(point)]
        self._steps.next(f"{judge.profile.name}: {before.name}, looking for layers to keep in fp32")
        derived = derive(
            judge, point, before, lambda: self._deadline.allows(_SHARE_OF_TIME["full"])
        )
        if derived is None:
            return 0
        name = judge.name(derived.point)
        candidate = judge.judge(derived.point)
        self._candidates[name] = candidate.model_copy(
            update={"parent": before.name, "notes": (*candidate.notes, derived.note)}
        )
        self._points.append(derived.point)
        self._distinct.append(derived.point)
        return 1

    def _worth_reverting(self) -> Point | None:
        """The quantised point that answers best of those that only their answers rule out."""
        judge, primary = self._judge, self._judge.task.primary
        passed = [c for c in self._candidates.values() if c.verdict == "PASS" and c.measurement]
        fastest = min((c.measurement.p50_ms for c in passed if c.measurement), default=math.inf)
        found: list[tuple[float, float, Point]] = []
        for point in self._distinct:
            candidate = self._candidates[judge.name(point)]
            accuracy, timed = candidate.accuracy, candidate.measurement
            if (
                judge.recipe(point).precision == "int8"
                and accuracy is not None
                and timed is not None
                and timed.p50_ms < fastest
                and judge.only_inaccurate(candidate)
                and judge.verdicts.keeps_accuracy(judge.references[point.member].accuracy)
            ):
                found.append((-accuracy.metric(primary), timed.p50_ms, point))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def _time_is_up(self) -> str:
        return f"the time limit of {self._deadline.limit_s or 0:g} s was reached"

    def _choose(self) -> tuple[str, int]:
        """The name of the chosen candidate, confirmed against fp32, empty where none passed; and
        how many points were measured in full for that."""
        judge, measured = self._judge, 0
        plain = {
            judge.name(point): index
            for index, point in enumerate(self._distinct)
            if judge.recipe(point).precision == "fp32"
        }
        references = self._references(plain)
        while True:
            order = self._ranked()
            if not order:
                return "", measured
            if order[0].name != self._reference_name():
                self._steps.next(f"{judge.profile.name}: comparing the best with fp32")
            found = confirm(order, plain.keys(), references, judge.compare)
            unknown = [name for name in found.unbeaten if self._may_yet_pass(name)]
            if not unknown or not self._deadline.allows(_SHARE_OF_TIME["full"]):
                self._candidates |= found.changed
                return found.chosen, measured
            for name in unknown:  # it was timed briefly, and seemed slower than it is
                self._look(plain[name], "full")
                measured += 1

    def _ranked(self) -> list[Candidate]:
        task, judge = self._judge.task, self._judge
        return ranked(
            (self._candidates[judge.name(point)] for point in self._distinct),
            task.primary,
            judge.budget.preference,
            task.data.labels,
        )

    def _may_yet_pass(self, name: str) -> bool:
        """Whether a point was only not measured in full."""
        known = self._candidates.get(name)
        return known is not None and known.fidelity != "full" and known.verdict == "INCONCLUSIVE"

    def _reference_name(self) -> str:
        return f"{self._judge.verdicts.best_member}/{FP32.name}"

    def _references(self, plain: Iterable[str]) -> list[Baseline]:
        """The best member in fp32 on ONNX Runtime, and what is fastest in fp32 as far as known."""
        name = self._reference_name()
        known = self._candidates.get(name)
        directory = known.bundle_dir if known is not None else None
        if directory is None and known is None:
            directory = self._judge.fp32_bundle(self._judge.verdicts.best_member)
        found = [] if directory is None else [Baseline(name, directory)]
        timed = [self._candidates[each] for each in plain if self._may_yet_pass(each)]
        fastest = min(
            (each for each in timed if each.measurement is not None and each.bundle_dir),
            key=lambda each: each.measurement.p50_ms if each.measurement else math.inf,
            default=None,
        )
        if fastest is not None and fastest.bundle_dir is not None and fastest.name != name:
            found.append(Baseline(fastest.name, fastest.bundle_dir))
        return found
