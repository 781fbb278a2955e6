"""One subject: trained, exported, optimised, searched exhaustively, compared in turns.

Every ratio is taken by timing both sides in turns in one process (`edge_agent.measure.compare`).
The baselines are what people start from, with their own defaults: torch in eager mode, and ONNX
Runtime on the exported file.  Our side is the pipeline that an agent serves, its steps included.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from bench.loads.errors import BenchError
from bench.optimizers import peers
from bench.optimizers.peers import PeerFigures
from bench.optimizers.subjects import INPUT, SEED, Data, Subject, subjects
from edge_agent.measure import Comparison, Issue, MeasureSettings, compare, machine_lock
from edge_agent.pipeline import Pipeline, manifest_file
from edge_agent.wire.manifest import StepSpec, TensorSpec
from optimizer.budget import Budget
from optimizer.evaluate import EvalData
from optimizer.export import export_onnx
from optimizer.profiles import THIS_MACHINE
from optimizer.search import optimize
from optimizer.space import Axes
from optimizer.task import Candidate, OptimizeResult, OptimizeTask, Progress, TrainedMember

MEMBER: Final = "trained"
SAMPLES: Final = 16
MAX_DROP_POINTS: Final = 1.0


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        quick: little training, short measurements, few rows; its figures mean nothing.
        exhaustive: measure every point, to know what the search should have found.
        peers: other optimisers too.
        names: subjects by name; empty takes all.
    """

    quick: bool = False
    exhaustive: bool = True
    peers: bool = False
    names: tuple[str, ...] = ()

    def subjects(self) -> list[Subject]:
        """Those that are asked for.

        Raises:
            BenchError: there is none of that name.
        """
        known = {subject.name: subject for subject in subjects(self.quick)}
        for name in self.names:
            if name not in known:
                raise BenchError(f"no network {name!r}; there are {', '.join(known)}")
        return [known[name] for name in self.names or known]

    @property
    def measuring(self) -> MeasureSettings:
        """How comparisons are timed."""
        quick = MeasureSettings.quick_mode(SEED)
        if self.quick:
            return quick
        return quick.model_copy(
            update={"quick": False, "min_duration_s": 3.0, "max_duration_s": 20.0}
        )


@dataclass
class Figures:
    """What was found about one subject.

    Attributes:
        winner: name of the chosen candidate.
        accuracy, reference_accuracy: of the winner and of the network before any recipe, 0..1.
        vs_torch, vs_ort: the winner against torch in eager mode and ONNX Runtime in fp32.
        vs_ort_one_thread: against ONNX Runtime held to one thread.
        points, measured: different points of the search, and those measured in full.
        best: what the exhaustive search chose.
        vs_best: the winner against `best`; `None` where there was no exhaustive search, or where
            they are the same.
    """

    name: str
    about: str
    winner: str
    precision: str
    accuracy: float
    reference_accuracy: float
    vs_torch: Comparison
    vs_ort: Comparison
    vs_ort_one_thread: Comparison
    points: int
    measured: int
    minutes: float
    best: str = ""
    exhaustive_minutes: float = 0.0
    vs_best: Comparison | None = None
    peers: list[PeerFigures] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The figures in one line, for whoever does not wait for the tables."""
        share = self.share_of_best
        return (
            f"{self.name}: {self.winner}, {self.vs_torch.speedup:.2f}× torch, "
            f"{self.vs_ort.speedup:.2f}× ORT fp32, {self.accuracy_drop_points:.2f} points lost, "
            + ("" if share is None else f"{share:.2f} of the best, ")
            + f"{self.measured} of {self.points} measured, {self.minutes:.1f} min"
        )

    @property
    def accuracy_drop_points(self) -> float:
        return max(0.0, (self.reference_accuracy - self.accuracy) * 100)

    @property
    def measured_fraction(self) -> float:
        return self.measured / self.points if self.points else 0.0

    @property
    def share_of_best(self) -> float | None:
        """Speed of the winner over that of the exhaustive search's; at most 1."""
        if not self.best:
            return None
        return 1.0 if self.vs_best is None else min(1.0, self.vs_best.speedup)


def say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def run(settings: Settings, place: Path, tell: Callable[[str], None] = say) -> list[Figures]:
    """Figures of every subject that is asked for."""
    pythons = peers.interpreters(tell) if settings.peers else {}
    found = []
    for subject in settings.subjects():
        found.append(_one(subject, settings, place, pythons, tell))
        tell(found[-1].line)
    return found


def _one(
    subject: Subject,
    settings: Settings,
    place: Path,
    pythons: dict[str, Path],
    tell: Callable[[str], None],
) -> Figures:
    directory = place / subject.name
    directory.mkdir()
    tell(f"{subject.name}: training")
    module, data = subject.trained(), subject.data()
    onnx_path = directory / "network.onnx"
    export_onnx(module, {INPUT: data.calibration[:2]}, onnx_path, ["logits"])
    task = search_task(subject, data, onnx_path, directory / "search", settings)
    result, minutes = _timed(task, subject.name, tell)
    winner = result.chosen(THIS_MACHINE)
    samples = [{INPUT: data.judged[index : index + 1]} for index in range(SAMPLES)]
    with _opened(winner) as ours:
        figures = Figures(
            name=subject.name, about=subject.about, winner=winner.name,
            precision=winner.precision, accuracy=_accuracy(winner),
            reference_accuracy=result.baselines[MEMBER],
            vs_torch=_turns(_eager(module, samples), _pipeline(ours, samples), settings),
            vs_ort=_turns(plain_ort(onnx_path, samples), _pipeline(ours, samples), settings),
            vs_ort_one_thread=_turns(
                plain_ort(onnx_path, samples, threads=1), _pipeline(ours, samples), settings
            ),
            points=result.points, measured=result.measured, minutes=minutes,
        )  # fmt: skip
        if settings.exhaustive:
            _exhaust(task, figures, ours, samples, settings, tell)
        for name, python in pythons.items():
            tell(f"{subject.name}: {name}")
            figures.peers.append(
                peers.compare_with(
                    name, python, onnx_path, data, directory,
                    reference=figures.reference_accuracy, max_drop_points=MAX_DROP_POINTS,
                    turns=lambda theirs: _turns(theirs, _pipeline(ours, samples), settings),
                    samples=samples,
                )
            )  # fmt: skip
    return figures


def search_task(
    subject: Subject, data: Data, onnx_path: Path, out_dir: Path, settings: Settings
) -> OptimizeTask:
    """The search that is judged: everything is varied, one point of accuracy may be lost."""
    scores = (-1, len(data.names))
    return OptimizeTask(
        model=subject.name,
        version=1,
        members=(TrainedMember(MEMBER, onnx_path),),
        profiles={THIS_MACHINE: Budget(max_accuracy_drop_points=MAX_DROP_POINTS, prefer="speed")},
        pipeline=(StepSpec(name="model"), StepSpec(name="classify")),
        inputs=(TensorSpec(name=INPUT, datatype=subject.datatype, shape=(-1, *subject.item)),),
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=scores),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        ),
        labels=data.names,
        calibration={INPUT: data.calibration},
        data=EvalData({INPUT: data.judged}, data.labels, data.names),
        golden={INPUT: data.golden},
        out_dir=out_dir,
        quick=True,  # choosing; what is reported is timed in turns afterwards
        primary="accuracy",
        axes=Axes(),
        seed=SEED,
    )


def _timed(
    task: OptimizeTask, name: str, tell: Callable[[str], None]
) -> tuple[OptimizeResult, float]:
    started = time.monotonic()

    def progress(at: Progress) -> None:
        left = "" if at.left_s is None else f", about {at.left_s:.0f} s left"
        tell(f"{name}: {at.fraction:4.0%} {at.text}{left}")

    result = optimize(task, progress=progress)
    return result, (time.monotonic() - started) / 60


def _exhaust(
    task: OptimizeTask,
    figures: Figures,
    ours: Pipeline,
    samples: list[dict[str, np.ndarray]],
    settings: Settings,
    tell: Callable[[str], None],
) -> None:
    everything = replace(task, exhaustive=True, out_dir=task.out_dir.with_name("exhaustive"))
    result, figures.exhaustive_minutes = _timed(everything, f"{figures.name}, exhaustive", tell)
    best = result.chosen(THIS_MACHINE)
    figures.best = best.name
    if best.name != figures.winner:
        with _opened(best) as theirs:
            figures.vs_best = _turns(_pipeline(theirs, samples), _pipeline(ours, samples), settings)


@contextlib.contextmanager
def _opened(candidate: Candidate) -> Iterator[Pipeline]:
    if candidate.bundle_dir is None:
        raise BenchError(f"{candidate.name} has no bundle")
    manifest = manifest_file.read(candidate.bundle_dir)
    pipeline = Pipeline.open(candidate.bundle_dir, manifest)
    try:
        yield pipeline
    finally:
        pipeline.close()


def _accuracy(candidate: Candidate) -> float:
    if candidate.accuracy is None:
        raise BenchError(f"{candidate.name} was not judged")
    return candidate.accuracy.accuracy


def _turns(baseline: Issue, candidate: Issue, settings: Settings) -> Comparison:
    with machine_lock():
        return compare(baseline, candidate, samples=SAMPLES, settings=settings.measuring)


def _pipeline(pipeline: Pipeline, samples: list[dict[str, np.ndarray]]) -> Issue:
    def issue(index: int) -> None:
        pipeline.run(samples[index])

    return issue


def _eager(module: nn.Module, samples: list[dict[str, np.ndarray]]) -> Issue:
    tensors = [torch.from_numpy(sample[INPUT]) for sample in samples]

    def issue(index: int) -> None:
        with torch.inference_mode():
            module(tensors[index])

    return issue


def plain_ort(path: Path, samples: list[dict[str, np.ndarray]], threads: int = 0) -> Issue:
    """ONNX Runtime on a file as its quick start has it, every core; its pool does not spin."""
    session = peers.ort_session(path, threads)

    def issue(index: int) -> None:
        session.run(None, samples[index])

    return issue
