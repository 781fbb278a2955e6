"""One candidate: made, evaluated, measured and judged by the budget of its profile.

Each candidate is left behind as the unpacked bundle it was judged by; what is chosen is served
unchanged.  A variant that cannot be made or run is a candidate with a reason, never a reason to
stop.

Rules:
    * A verdict is given by what was measured in full.  A look that was shorter can only rule out
      what misses a bound by more than its uncertainty.
    * Points that share files and a runtime share their evaluation; all that stands in their
      directories once more are links.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import JsonValue, TypeAdapter

from edge_agent.measure import Comparison, MeasureError, MeasureSettings
from edge_agent.pipeline import PipelineError
from edge_agent.runtime import SessionError, available
from edge_agent.wire.manifest import CostModel, Manifest
from optimizer import bundle
from optimizer.budget import Outcome
from optimizer.cache import file_digest
from optimizer.errors import DiskFull, OptimizerError, RecipeFailed
from optimizer.evaluate import Accuracy, row_count
from optimizer.making import Evaluated, Made, Workshop
from optimizer.passes import Recipe, find
from optimizer.profiles import HardwareProfile
from optimizer.reference import RUNTIME, Reference
from optimizer.space import Point, place_of
from optimizer.task import Candidate, Fidelity, OptimizeTask
from optimizer.timing import Measured, Measurer
from optimizer.verdicts import Verdicts

log = logging.getLogger("skerry.optimizer")

PROBE_ROWS: Final = 128
"""Labelled items that a probe answers."""

FAILURES: Final = (OptimizerError, PipelineError, SessionError, MeasureError)

_TIMED_ITEMS: Final = 64
_NEW_SCALES: Final = "with scales of the parent version it lost too much accuracy: new scales"
_MEASURED: Final = TypeAdapter(Measured)


@dataclass(frozen=True)
class _Files:
    """Files of a point's recipe, and what must be said about how they came about."""

    made: Made
    notes: tuple[str, ...] = ()


class CandidateJudge:
    """Makes, evaluates, measures and judges the points of one profile."""

    def __init__(
        self,
        task: OptimizeTask,
        profile: HardwareProfile,
        measurer: Measurer,
        workshop: Workshop,
        references: Mapping[str, Reference],
    ) -> None:
        self.task = task
        self.profile = profile
        self.budget = task.profiles[profile.name]
        self.references = references
        self.workshop = workshop
        self._measurer = measurer
        self.verdicts = Verdicts(
            task, profile, {name: each.accuracy for name, each in references.items()}
        )
        self._settings = (
            MeasureSettings.quick_mode(task.seed) if task.quick else MeasureSettings(seed=task.seed)
        )
        self._samples = bundle.first_items(task.data.inputs, _TIMED_ITEMS)
        self._files: dict[str, _Files | OptimizerError] = {}
        self._recipes: dict[str, Recipe] = {}
        self._timed: dict[tuple[str, str, int, int, Fidelity], Measured] = {}

    # ── files ────────────────────────────────────────────────────────────────────────────────────

    def recipe(self, point: Point) -> Recipe:
        if point.artifact not in self._recipes:
            self._recipes[point.artifact] = find(point.recipe.name, point.recipe.config)
        return self._recipes[point.artifact]

    def name(self, point: Point) -> str:
        return point.name(self.recipe(point).runtime, self.profile.model_threads)

    def files(self, point: Point) -> Made:
        """What the point's recipe makes, made when it is asked for first.

        Raises:
            OptimizerError: it makes nothing; the same whenever it is asked for.
        """
        if point.artifact not in self._files:
            try:
                self._files[point.artifact] = self._make(point)
            except DiskFull:
                raise
            except OptimizerError as error:
                self._files[point.artifact] = error
        found = self._files[point.artifact]
        if isinstance(found, OptimizerError):
            raise found
        return found.made

    def same(self, point: Point) -> str:
        """Points that this is equal for are one and the same.

        Raises:
            OptimizerError: the point cannot be made or run here.
        """
        made = self.files(point)
        if point.runtime not in made.artifact.runtimes:
            raise RecipeFailed(f"the files that it makes here are not for {point.runtime}")
        if point.runtime not in available():
            raise RecipeFailed(f"{point.runtime} is not installed here")
        return f"{made.sha} {point.runtime} {point.threads} {point.instances}"

    def _make(self, point: Point) -> _Files:
        recipe, source = self.recipe(point), self.references[point.member].source
        parent = self._parent(point)
        made = self.workshop.make(source, recipe, point.recipe, self.profile, parent)
        if parent is None or recipe.precision != "int8":
            return _Files(made)
        try:
            evaluated = self.workshop.evaluate(source, made, recipe.runtime, self.profile)
            kept = self.verdicts.keeps_accuracy(evaluated.accuracy)
        except DiskFull:
            raise
        except FAILURES:
            kept = False
        if kept:
            return _Files(made)
        made = self.workshop.make(source, recipe, point.recipe, self.profile)
        return _Files(made, (_NEW_SCALES,))

    def _parent(self, point: Point) -> Path | None:
        if self.task.parent_dir is None:
            return None
        directory = self.task.parent_dir / self.profile.name / place_of(point.artifact)
        return directory if directory.is_dir() else None

    # ── candidates ───────────────────────────────────────────────────────────────────────────────

    def blank(self, point: Point, reason: str = "", verdict: Outcome = "INVALID") -> Candidate:
        """The point before anything is known of it."""
        recipe, member = self.recipe(point), self.references[point.member].member
        return Candidate(
            profile=self.profile.name,
            name=self.name(point),
            member=point.member,
            recipe=point.recipe.name,
            runtime=point.runtime,
            precision=recipe.precision,
            threads=point.threads,
            instances=point.instances,
            parent=member.parent,
            verdict=verdict,
            reason=reason,
            notes=(*self._measurer.notes(self.profile), *member.notes),
        )

    def judge(
        self, point: Point, fidelity: Fidelity = "full", before: Candidate | None = None
    ) -> Candidate:
        """The candidate, judged; its bundle is left in the task's directory.

        Args:
            before: what the look before this one gave.

        Raises:
            DiskFull: there is no room for its bundle.
        """
        blank = self.blank(point).model_copy(update={"fidelity": fidelity})
        directory = self.directory(blank.name)
        try:
            candidate = self._judge(blank, point, directory, before)
        except FAILURES as error:
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(error, DiskFull):
                raise
            candidate = blank.model_copy(update={"reason": str(error)})
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DiskFull.at(directory) from error
            raise
        log.info(
            "candidate.judged profile=%s variant=%s fidelity=%s verdict=%s reason=%r",
            candidate.profile, candidate.name, fidelity, candidate.verdict, candidate.reason,
        )  # fmt: skip
        return candidate

    def twin(self, point: Point, of: Candidate) -> Candidate:
        """The candidate of a point whose files and settings are those of another."""
        if of.bundle_dir is None:
            return self.blank(point, of.reason)
        made, directory = self.files(point), self.directory(self.name(point))
        evaluated = self._evaluate(point, None if of.fidelity != "probe" else self._probe_rows())
        self._lay_out(directory, point, made, evaluated, of.cost)
        return of.model_copy(
            update={
                "name": self.name(point),
                "recipe": point.recipe.name,
                "bundle_dir": directory,
                "notes": (*of.notes, f"the same files as {of.name}: not measured again"),
            }
        )

    def directory(self, name: str) -> Path:
        return self.task.out_dir / self.profile.name / place_of(name)

    def _judge(
        self, blank: Candidate, point: Point, directory: Path, before: Candidate | None
    ) -> Candidate:
        fidelity = blank.fidelity
        made = self.files(point)
        rows = self._probe_rows() if fidelity == "probe" else None
        evaluated = self._evaluate(point, rows)
        draft = self._lay_out(directory, point, made, evaluated, None)
        candidate = blank.model_copy(
            update={
                "precision": evaluated.precision,
                "accuracy": evaluated.accuracy,
                "artifact_kib": bundle.bundle_kib(draft),
                "bundle_dir": directory,
                "notes": (
                    *blank.notes,
                    *made.artifact.notes,
                    *self._notes(point),
                    *((evaluated.note,) if evaluated.note else ()),
                ),
            }
        )
        if fidelity == "quick" and before is not None:
            # What fails by its answers need not be timed again.
            known = candidate.model_copy(
                update={
                    "measurement": before.measurement,
                    "measured_on": before.measured_on,
                    "predicted": before.predicted,
                }
            )
            known = self.verdicts.judge(known, rows)
            if known.verdict == "FAIL":
                return known
        measured = self._measure(point, made, directory, draft, fidelity)
        if measured.cost is not None:
            bundle.finish_manifest(
                draft, directory, self.budget, measured.cost, evaluated.precision
            )
        candidate = candidate.model_copy(
            update={
                "measurement": measured.latency,
                "measured_on": self._measurer.where(self.profile) if measured.latency else "",
                "predicted": measured.predicted,
                "max_qps": measured.max_qps,
                "server": measured.server,
                "cost": measured.cost,
                "memory_mib": measured.memory_mib,
                "notes": (*candidate.notes, *measured.notes),
            }
        )
        return self.verdicts.judge(candidate, rows)

    def accuracy_of(self, point: Point) -> Accuracy:
        """What the point answers on all items, without measuring anything.

        Raises:
            OptimizerError, PipelineError, SessionError: it cannot be made, opened or answered.
        """
        source = self.references[point.member].source
        recipe = find(point.recipe.name, point.recipe.config)
        made = self.workshop.make(source, recipe, point.recipe, self.profile)
        return self.workshop.evaluate(source, made, point.runtime, self.profile).accuracy

    def _probe_rows(self) -> int | None:
        """Items that a probe answers; `None` where that is nearly all of them."""
        count = row_count(self.task.data.inputs)
        return PROBE_ROWS if count > 2 * PROBE_ROWS else None

    def _notes(self, point: Point) -> tuple[str, ...]:
        files = self._files.get(point.artifact)
        return files.notes if isinstance(files, _Files) else ()

    def _evaluate(self, point: Point, rows: int | None) -> Evaluated:
        return self.workshop.evaluate(
            self.references[point.member].source, self.files(point), point.runtime, self.profile,
            rows,
        )  # fmt: skip

    def _lay_out(
        self,
        directory: Path,
        point: Point,
        made: Made,
        evaluated: Evaluated,
        cost: CostModel | None,
    ) -> Manifest:
        shutil.rmtree(directory, ignore_errors=True)
        self.workshop.lay_out(directory, made, evaluated)
        draft = self.workshop.draft(
            self.references[point.member].source, made, self.profile, self.name(point),
            point.runtime, point.threads, point.instances,
        )  # fmt: skip
        return bundle.finish_manifest(draft, directory, self.budget, cost, evaluated.precision)

    def only_inaccurate(self, candidate: Candidate) -> bool:
        """Whether it misses bounds on accuracy and no other."""
        accuracy = candidate.accuracy
        if candidate.verdict != "FAIL" or accuracy is None:
            return False
        reference = self.references[candidate.member].accuracy
        mended = self.verdicts.judge(candidate.model_copy(update={"accuracy": reference}))
        return mended.verdict != "FAIL" and not self.verdicts.keeps_accuracy(accuracy)

    # ── measurements ─────────────────────────────────────────────────────────────────────────────

    def _measure(
        self, point: Point, made: Made, directory: Path, manifest: Manifest, fidelity: Fidelity
    ) -> Measured:
        # One request at a time is as fast with more instances: a short look need not tell them.
        shared = (
            made.sha, point.runtime, point.threads,
            point.instances if fidelity != "probe" else 1, fidelity,
        )  # fmt: skip
        if shared in self._timed:
            return self._timed[shared]
        settings = _settings(self._settings, fidelity)
        key = self.workshop.key(
            what="times",
            bundle=_identity(manifest),
            profile=self.profile.model_dump(mode="json"),
            budget=self.budget.model_dump(mode="json"),
            settings=settings.model_dump(mode="json"),
            fidelity=fidelity,
            where=self._where(),
        )
        cache = self.workshop.cache
        if (known := cache.get("measurement", key)) is not None:
            measured = _MEASURED.validate_python(known.value)
        else:
            measured = self._measurer.measure(
                directory, manifest, self._samples, self.profile, self.budget, settings, fidelity
            )
            if _settled(measured, fidelity):
                cache.put("measurement", key, _MEASURED.dump_python(measured, mode="json"))
        if fidelity == "probe":
            measured = replace(measured, memory_mib=None)  # of another number of instances, maybe
        self._timed[shared] = measured
        return measured

    def compare(self, baseline: Path, candidate: Candidate) -> Comparison | None:
        """Time the candidate and the bundle in `baseline` in turns; `None` where it cannot be.

        Raises:
            PipelineError, SessionError, MeasureError: see `Measurer.compare`.
        """
        if candidate.bundle_dir is None:
            return None
        key = self.workshop.key(
            what="comparison",
            baseline=file_digest(baseline / "manifest.json"),
            candidate=file_digest(candidate.bundle_dir / "manifest.json"),
            settings=self._settings.model_dump(mode="json"),
            where=self._where(),
        )
        if (known := self.workshop.cache.get("comparison", key)) is not None:
            return Comparison.model_validate(known.value)
        found = self._measurer.compare(
            baseline, candidate.bundle_dir, self._samples, self.profile, self._settings
        )
        if found is not None and not found.disturbed:
            self.workshop.cache.put("comparison", key, found.model_dump(mode="json"))
        return found

    def _where(self) -> list[JsonValue]:
        """The machine that figures are taken on, and this one, if that is the same."""
        return [self._measurer.where(self.profile), platform.node(), os.cpu_count()]

    def fp32_bundle(self, member: str) -> Path | None:
        """The bundle of a member in fp32 on ONNX Runtime, where no recipe of the task makes one.

        `None` where it cannot be made for this profile.
        """
        reference = self.references[member]
        if RUNTIME not in self.profile.runtimes:
            return None
        directory = self.task.out_dir / self.profile.name / place_of(f"{member}/fp32")
        try:
            evaluated = self.workshop.evaluate(
                reference.source, reference.made, RUNTIME, self.profile
            )
            shutil.rmtree(directory, ignore_errors=True)
            self.workshop.lay_out(directory, reference.made, evaluated)
            draft = self.workshop.draft(
                reference.source, reference.made, self.profile, f"{member}/fp32", RUNTIME
            )
            bundle.finish_manifest(draft, directory, self.budget, None, evaluated.precision)
        except DiskFull:
            raise
        except FAILURES:
            return None
        return directory


def _settings(full: MeasureSettings, fidelity: Fidelity) -> MeasureSettings:
    """How long a look of that kind takes."""
    if fidelity == "full":
        return full
    few = {"min_queries": 12, "max_duration_s": 0.3}
    some = {"min_queries": 100, "max_duration_s": 1.5}
    return MeasureSettings.quick_mode(full.seed).model_copy(
        update={"min_duration_s": 0.0, "attempts": 1, **(few if fidelity == "probe" else some)}
    )


def _settled(measured: Measured, fidelity: Fidelity) -> bool:
    """Whether it is worth keeping: what was disturbed or too short is measured again."""
    if measured.latency is None:
        return False
    runs = [run for run in (measured.latency, measured.server) if run is not None]
    return fidelity != "full" or all(run.verdict in ("PASS", "FAIL") for run in runs)


def _identity(manifest: Manifest) -> str:
    """What of a bundle its times depend on: its files and how they are run, not its name."""
    return manifest.model_copy(update={"variant": "", "version": 0, "model": ""}).model_dump_json()
