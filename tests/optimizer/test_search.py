from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.drift import read_reference
from edge_agent.measure import Comparison, Measurement, MeasureSettings, measure
from edge_agent.pipeline import Pipeline, Tensors, golden
from edge_agent.wire.manifest import Manifest, StepSpec
from optimizer.budget import Budget
from optimizer.errors import BudgetNotMet, EvaluationFailed, OptimizerError, UnknownProfile
from optimizer.profiles import HardwareProfile, Host
from optimizer.search import optimize
from optimizer.task import Fidelity, OptimizeTask, Progress
from optimizer.timing import LocalMeasurer, Measured
from tests.optimizer.conftest import only

ANYTHING = Budget(min_accuracy={"macro_f1": 0.5})


class Untimed:
    """A measurer for searches whose times do not matter: it opens the bundle and reads no clock."""

    def __init__(self) -> None:
        self.seen: list[Path] = []

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        return ()

    def where(self, profile: HardwareProfile) -> str:
        return "nowhere"

    def measure(
        self,
        directory: Path,
        manifest: Manifest,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        budget: Budget,
        settings: MeasureSettings,
        fidelity: Fidelity = "full",
    ) -> Measured:
        self.seen.append(directory)
        ticks = iter(range(10**9))
        timed: Measurement = measure(
            lambda index: None,
            scenario="single_stream",
            settings=MeasureSettings(min_queries=500, min_duration_s=0, attempts=1),
            clock=lambda: next(ticks) * 1e-3,
            sleep=lambda _: None,
        )
        return Measured(latency=timed)

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        return None


def test_every_candidate_leaves_the_bundle_that_it_was_judged_by(task: OptimizeTask) -> None:
    result = optimize(task)
    assert [c.name for c in result.candidates] == [
        "small/fp32", "small/ort-int8", "large/fp32", "large/ort-int8",
    ]  # fmt: skip
    for candidate in result.candidates:
        directory = candidate.bundle_dir
        assert directory is not None
        manifest = Manifest.decode((directory / "manifest.json").read_bytes(), limit=1 << 18)
        listed = {file.name: file for file in manifest.files}
        assert set(listed) | {"manifest.json"} == {path.name for path in directory.iterdir()}
        for name, file in listed.items():
            data = (directory / name).read_bytes()
            assert (file.sha256, file.length) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (manifest.model, manifest.version, manifest.profile) == ("digits", 3, "this-machine")
        assert manifest.variant == candidate.name
        assert manifest.network.precision == candidate.precision
        assert manifest.cost is not None
        assert manifest.code == ("steps.py",)
        pipeline = Pipeline.open(directory, manifest)
        golden.check(pipeline, directory / "golden.npz", manifest.golden_atol)
        pipeline.close()
        assert read_reference(directory / "reference.npz").summary.count == 300
        assert candidate.measurement is not None
        assert candidate.measurement.quick


def test_the_most_accurate_variant_is_selected_and_smaller_members_count_as_loss(
    task: OptimizeTask,
) -> None:
    budget = Budget(max_accuracy_drop_points=1.0)
    result = optimize(replace(task, profiles={"this-machine": budget}), measurer=Untimed())
    chosen = result.chosen("this-machine")
    assert chosen.member == "large"
    assert chosen.accuracy is not None
    assert chosen.accuracy.macro_f1 > 0.9
    small = next(c for c in result.candidates if c.name == "small/fp32")
    assert small.verdict == "FAIL"
    assert small.reason.startswith("loss of macro_f1")
    result.require_budgets()


def test_a_budget_that_nothing_meets_names_the_nearest_miss(task: OptimizeTask) -> None:
    budgets = {"this-machine": Budget(artifact_kib=1), "generic-x86-64": ANYTHING}
    result = optimize(replace(task, profiles=budgets), measurer=Untimed())
    assert "generic-x86-64" in result.selected
    with pytest.raises(BudgetNotMet) as caught:
        result.require_budgets()
    smallest = min(
        (c for c in result.candidates if c.profile == "this-machine"),
        key=lambda c: c.artifact_kib or 0.0,
    )
    assert caught.value.profile == "this-machine"
    assert str(caught.value).startswith(
        f"no variant meets the budget of profile 'this-machine'; nearest is {smallest.name}: bundle"
    )
    assert "\n" not in str(caught.value)


def test_each_profile_gets_only_recipes_of_its_runtimes(task: OptimizeTask) -> None:
    recipes = (StepSpec(name="fp32"), StepSpec(name="openvino-fp32"))
    profiles = {"generic-arm64": ANYTHING, "this-machine": ANYTHING}
    result = optimize(
        replace(task, members=task.members[:1], recipes=recipes, profiles=profiles),
        measurer=Untimed(),
    )
    assert [(c.profile, c.recipe) for c in result.candidates] == [
        ("generic-arm64", "fp32"),
        ("this-machine", "fp32"),
        ("this-machine", "openvino-fp32"),
    ]


def test_a_recipe_that_fails_is_a_candidate_with_a_reason(task: OptimizeTask) -> None:
    task = replace(
        task, calibration={"image": task.calibration["image"][:0]}, members=task.members[:1]
    )
    result = optimize(task, measurer=Untimed())
    failed = next(c for c in result.candidates if c.recipe == "ort-int8")
    assert failed.verdict == "INVALID"
    assert failed.reason.endswith("quantisation needs calibration data, and there is none")
    assert failed.bundle_dir is None
    assert not (task.out_dir / "this-machine" / "small-ort-int8").exists()
    assert result.selected == {"this-machine": "small/fp32"}


def test_calibration_leaves_out_what_checkers_refuse(task: OptimizeTask) -> None:
    spoiled = task.calibration["image"].copy()
    spoiled[::7] = 1e6
    one = replace(task, members=task.members[1:], recipes=(StepSpec(name="ort-int8"),))
    result = optimize(replace(one, calibration={"image": spoiled}), measurer=Untimed())
    accuracy = result.candidates[0].accuracy
    assert accuracy is not None
    assert accuracy.macro_f1 > 0.9


def test_another_architecture_is_not_timed_here_and_says_so(task: OptimizeTask) -> None:
    elsewhere = LocalMeasurer(Host("riscv64", frozenset(), cores=2, memory_mib=1000))
    one = replace(task, members=task.members[:1], recipes=(StepSpec(name="fp32"),))
    result = optimize(one, measurer=elsewhere)
    only = result.candidates[0]
    assert (only.verdict, only.latency_ms) == ("INCONCLUSIVE", None)
    assert only.reason == "p90 latency was not established"
    assert only.accuracy is not None
    assert only.notes[0].startswith("not measured: this machine is riscv64")


def test_a_cpu_that_can_do_more_than_the_profile_is_noted() -> None:
    from optimizer.profiles import load_profile

    rich = LocalMeasurer(Host("x86_64", frozenset({"avx2", "avx512_vnni"}), 8, 16_000))
    assert rich.notes(load_profile("generic-x86-64")) == (
        "measured with avx512_vnni, which the profile does not promise",
    )


def test_progress_never_falls_and_ends_at_one(task: OptimizeTask) -> None:
    seen: list[Progress] = []
    optimize(task, progress=seen.append, measurer=Untimed())
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert "this-machine: large/ort-int8" in [step.text for step in seen]


def test_a_search_is_cancelled_by_its_callback(task: OptimizeTask) -> None:
    class Cancelled(Exception):
        pass

    measurer = Untimed()

    def stop(step: Progress) -> None:
        if step.text.endswith("small/ort-int8"):
            raise Cancelled

    with pytest.raises(Cancelled):
        optimize(task, progress=stop, measurer=measurer)
    assert len(measurer.seen) == 1


def test_golden_answers_are_clear_ones(task: OptimizeTask) -> None:
    result = optimize(replace(task, profiles={"this-machine": ANYTHING}), measurer=Untimed())
    for candidate in result.candidates:
        assert candidate.bundle_dir is not None
        _, outputs = golden.read(candidate.bundle_dir / "golden.npz")
        ordered = np.sort(outputs["scores"], axis=1)
        assert len(ordered) == 16
        assert (ordered[:, -1] - ordered[:, -2]).min() >= 0.2


def test_answers_that_depend_on_the_batch_are_refused(task: OptimizeTask) -> None:
    task.code[0].write_text(
        "import numpy as np\n"
        "from edge_agent.pipeline import processor\n"
        "@processor('digits.prepare')\n"
        "def prepare(tensors):\n"
        "    x = tensors['image'][:, None] / 16\n"
        "    return {'x': (x - x.mean() * (len(x) % 2) * 3).astype(np.float32)}\n"
    )
    result = optimize(replace(task, members=task.members[1:]), measurer=Untimed())
    assert {c.verdict for c in result.candidates} == {"INVALID"}
    assert "depends on the batch" in result.candidates[0].reason


def test_what_cannot_be_searched_is_refused_before_any_work(task: OptimizeTask) -> None:
    with pytest.raises(UnknownProfile, match="did you mean 'generic-x86-64'"):
        optimize(replace(task, profiles={"generic-x86": ANYTHING}))
    with pytest.raises(OptimizerError, match="nothing to optimise"):
        optimize(replace(task, members=()))
    with pytest.raises(EvaluationFailed, match=r"small: .*digits\.prepare"):
        optimize(replace(task, code=()))


def test_rate_and_memory_are_measured_where_the_budget_bounds_them(task: OptimizeTask) -> None:
    budget = Budget(latency_ms=500, percentile=0.9, qps=400, memory_mib=2000)
    one = replace(only(task, "small", "fp32"), profiles={"this-machine": budget})
    (candidate,) = optimize(one).candidates
    assert candidate.server is not None
    assert candidate.server.target_qps == 400
    assert candidate.memory_mib is not None
    assert 20 < candidate.memory_mib < 2000


@pytest.mark.slow
def test_all_recipes_work_on_this_machine(task: OptimizeTask) -> None:
    result = optimize(
        replace(task, members=task.members[1:], recipes=(), exhaustive=True),
        measurer=Untimed(),
    )
    judged = [c for c in result.candidates if c.bundle_dir is not None]
    assert len(judged) >= 6
    assert {"onnxruntime", "openvino"} == {c.runtime for c in judged}
    assert all(c.reason for c in result.candidates if c.bundle_dir is None)
