"""One candidate: made, evaluated, measured and judged by the budget of its profile.

Each candidate is left behind as the unpacked bundle it was judged by; what is chosen is served
unchanged.  A variant that cannot be made or run is a candidate with a reason, never a reason to
stop.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Final

from edge_agent.measure import MeasureError, Measurement, MeasureSettings
from edge_agent.pipeline import Pipeline, PipelineError
from edge_agent.runtime import SessionError, available
from optimizer import bundle
from optimizer.budget import Budget, Facts, judge
from optimizer.errors import OptimizerError, RecipeFailed
from optimizer.evaluate import answer, score
from optimizer.passes import PassContext, Recipe
from optimizer.profiles import HardwareProfile
from optimizer.reference import Reference
from optimizer.task import Candidate, OptimizeTask
from optimizer.timing import Measurer

log = logging.getLogger("skerry.optimizer")

_TIMED_ITEMS: Final = 64
_NEW_SCALES: Final = "with scales of the parent version it lost too much accuracy: new scales"


class CandidateJudge:
    """Makes, evaluates, measures and judges single candidates."""

    def __init__(self, task: OptimizeTask, measurer: Measurer, baseline: float) -> None:
        self._task = task
        self._measurer = measurer
        self._baseline = baseline
        self._settings = (
            MeasureSettings.quick_mode(task.seed) if task.quick else MeasureSettings(seed=task.seed)
        )
        self._samples = bundle.first_items(task.data.inputs, _TIMED_ITEMS)

    def judge(self, profile: HardwareProfile, reference: Reference, recipe: Recipe) -> Candidate:
        """The candidate, judged; its bundle is left in the task's directory."""
        member = reference.member.name
        place = Path(profile.name) / f"{member}-{recipe.name}"
        directory = self._task.out_dir / place
        parent = None if self._task.parent_dir is None else self._task.parent_dir / place
        if parent is not None and not parent.is_dir():
            parent = None
        blank = Candidate(
            profile=profile.name,
            name=f"{member}/{recipe.name}",
            member=member,
            recipe=recipe.name,
            runtime=recipe.runtime,
            precision=recipe.precision,
            threads=profile.model_threads,
            verdict="INVALID",
            notes=self._measurer.notes(profile),
        )
        candidate = self._judged(blank, profile, reference, recipe, directory, parent)
        if (
            parent is not None
            and recipe.precision == "int8"
            and not self._accurate(candidate, profile)
        ):
            candidate = self._judged(blank, profile, reference, recipe, directory, None)
            candidate = candidate.model_copy(update={"notes": (*candidate.notes, _NEW_SCALES)})
        log.info(
            "candidate.judged profile=%s variant=%s verdict=%s reason=%r",
            candidate.profile, candidate.name, candidate.verdict, candidate.reason,
        )  # fmt: skip
        return candidate

    def _judged(
        self,
        blank: Candidate,
        profile: HardwareProfile,
        reference: Reference,
        recipe: Recipe,
        directory: Path,
        parent: Path | None,
    ) -> Candidate:
        """The candidate, or why there is none."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            return self._judge(blank, profile, reference, recipe, directory, parent)
        except (OptimizerError, PipelineError, SessionError, MeasureError) as error:
            shutil.rmtree(directory, ignore_errors=True)
            return blank.model_copy(update={"reason": str(error)})

    def _judge(
        self,
        blank: Candidate,
        profile: HardwareProfile,
        reference: Reference,
        recipe: Recipe,
        directory: Path,
        parent: Path | None,
    ) -> Candidate:
        task, budget = self._task, self._task.profiles[profile.name]
        _require_installed(recipe)
        artifact = recipe.apply(
            PassContext(
                reference.member.onnx_path,
                reference.calibration,
                directory,
                profile,
                task.seed,
                parent,
                member=reference.member.name,
                trainer=task.trainer,
            )
        )
        bundle.copy_code(task, directory)
        manifest = bundle.draft_manifest(task, profile, blank.name, artifact, reference.interface)
        pipeline = Pipeline.open(directory, manifest)
        try:
            precision = pipeline.provenance.precision
            answers = answer(pipeline, task.data.inputs, bundle.batch_of(task.inputs))
            bundle.write_golden(
                pipeline, task.golden, directory / bundle.GOLDEN_NAME, manifest.golden_atol
            )
        finally:
            pipeline.close()
        accuracy = score(answers.labels, task.data.labels, task.data.names or task.labels)
        bundle.write_drift_reference(task.data.inputs, answers, directory / bundle.REFERENCE_NAME)
        draft = bundle.finish_manifest(manifest, directory, budget, None, precision)
        measured = self._measurer.measure(
            directory, draft, self._samples, profile, budget, self._settings
        )
        final = bundle.finish_manifest(draft, directory, budget, measured.cost, precision)
        judged = blank.model_copy(
            update={
                "precision": precision,
                "accuracy": accuracy,
                "measurement": measured.latency,
                "measured_on": self._measurer.where(profile) if measured.latency else "",
                "predicted": measured.predicted,
                "max_qps": measured.max_qps,
                "server": measured.server,
                "cost": measured.cost,
                "memory_mib": measured.memory_mib,
                "notes": (*blank.notes, *artifact.notes, *measured.notes),
                "artifact_kib": bundle.bundle_kib(final),
                "bundle_dir": directory,
            }
        )
        return self._with_verdict(judged, budget, profile)

    def _accurate(self, candidate: Candidate, profile: HardwareProfile) -> bool:
        """Whether the candidate keeps those bounds of its budget that its scales bear upon."""
        budget = self._task.profiles[candidate.profile]
        apart: dict[str, None] = dict.fromkeys(
            ("latency_ms", "qps", "memory_mib", "artifact_kib", "replicas"), None
        )
        facts = self._facts(candidate, profile)
        return (
            candidate.accuracy is not None
            and judge(budget.model_copy(update=apart), facts).verdict == "PASS"
        )

    def _facts(self, candidate: Candidate, profile: HardwareProfile) -> Facts:
        latency, server, accuracy = candidate.measurement, candidate.server, candidate.accuracy
        latency_ms = None if latency is None else _at_percentile(latency)
        return Facts(
            latency=None if latency is None else latency.verdict,
            latency_ms=latency_ms,
            server=None if server is None else server.verdict,
            server_latency_ms=None if server is None else _at_percentile(server),
            memory_mib=candidate.memory_mib,
            artifact_kib=candidate.artifact_kib,
            metrics={} if accuracy is None else accuracy.metrics(),
            primary=self._task.primary,
            baseline=self._baseline,
            recall={
                label: value
                for label, value in (accuracy.recall.items() if accuracy else ())
                if value is not None
            },
            device_memory_mib=profile.usable_mib,
        )

    def _with_verdict(
        self, candidate: Candidate, budget: Budget, profile: HardwareProfile
    ) -> Candidate:
        facts = self._facts(candidate, profile)
        verdict = judge(budget, facts)
        return candidate.model_copy(
            update={
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "distance": verdict.distance,
                "latency_ms": facts.latency_ms,
            }
        )


def _at_percentile(measurement: Measurement) -> float | None:
    """The latency at the percentile that was asked for, in ms."""
    observed = {
        0.5: measurement.p50_ms,
        0.9: measurement.p90_ms,
        0.95: measurement.p95_ms,
        0.99: measurement.p99_ms,
    }
    return observed.get(measurement.percentile, measurement.upper_bound_ms)


def _require_installed(recipe: Recipe) -> None:
    """Refuse a recipe whose runtime or quantiser is not there."""
    absent = [name for name in recipe.packages if importlib.util.find_spec(name) is None]
    if recipe.runtime not in available():
        absent.insert(0, recipe.runtime)
    if absent:
        raise RecipeFailed(
            f"{', '.join(absent)} is not installed here; it comes with skerry[train]"
        )
