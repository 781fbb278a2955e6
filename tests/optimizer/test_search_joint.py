"""The joint search on real files with times from a table: what is made, shared, kept, resumed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edge_agent.pipeline import Pipeline, manifest_file
from edge_agent.wire.manifest import Manifest, StepSpec
from optimizer.budget import Budget
from optimizer.errors import DiskFull, RecipeFailed, SearchInterrupted
from optimizer.passes import Artifact, PassContext, RecipeConfig, recipe
from optimizer.passes.registry import registering
from optimizer.profiles import Figure, load_profile
from optimizer.search import optimize
from optimizer.space import Axes, place_of
from optimizer.task import OptimizeResult, OptimizeTask, Progress, TrainedMember
from tests.optimizer.conftest import Digits, digits_task
from tests.optimizer.timetable import Timetable

LARGE = 1
FULL_SEED = 28
WIDE = Axes(threads=(1, 2, 4), instances=(1, 2))
RECIPES = (
    StepSpec(name="fp32"),
    StepSpec(name="ort-int8"),
    StepSpec(name="ort-int8", config={"reduce_range": True}),
)


def times(manifest: Manifest) -> float:
    network = manifest.network
    speed = {"fp32": 1.0, "int8": 2.5}[network.precision]
    if network.runtime == "openvino":
        speed *= 0.7
    return 10.0 / speed / (1 + 0.2 * (network.threads - 1))


BUDGET = Budget(latency_ms=50, percentile=0.9, qps=20, max_accuracy_drop_points=3.0)


@pytest.fixture
def joint(task: OptimizeTask) -> OptimizeTask:
    """3 recipes × 2 runtimes × 2 numbers of threads of the large member."""
    return replace(
        task,
        members=task.members[LARGE:],
        axes=Axes(threads=(1,), instances=(1,)),
        recipes=RECIPES,
        profiles={"this-machine": BUDGET},
    )


@dataclass(frozen=True)
class Searched:
    result: OptimizeResult
    table: Timetable


@pytest.fixture(scope="module")
def wide(
    tmp_path_factory: pytest.TempPathFactory, digits: Digits, members: tuple[TrainedMember, ...]
) -> Searched:
    """2 members × 3 recipes × 2 runtimes × 3 numbers of threads × 2 of instances."""
    task = digits_task(tmp_path_factory.mktemp("wide"), digits, members)
    table = Timetable(times)
    task = replace(task, axes=WIDE, recipes=RECIPES, profiles={"this-machine": BUDGET})
    return Searched(optimize(task, measurer=table), table)


def test_a_few_points_are_measured_in_full_and_the_best_is_found(wide: Searched) -> None:
    result, table = wide.result, wide.table
    assert result.points == 72
    assert result.measured == sum(fidelity == "full" for _, fidelity in table.measured)
    assert result.measured_fraction <= 0.15
    chosen = result.chosen("this-machine")
    assert (chosen.member, chosen.precision, chosen.runtime) == ("large", "int8", "onnxruntime")
    assert chosen.threads == 4
    assert chosen.comparison is not None
    assert chosen.comparison.low > 1
    left_out = [c for c in result.candidates if c.fidelity != "full"]
    assert all(c.verdict in ("FAIL", "INCONCLUSIVE") and c.reason for c in left_out)
    assert all(c.bundle_dir is not None for c in result.candidates)


def test_the_bundle_says_how_the_network_is_run(wide: Searched) -> None:
    for candidate in wide.result.candidates:
        assert candidate.bundle_dir is not None
        manifest = manifest_file.read(candidate.bundle_dir)
        network = manifest.network
        assert manifest.variant == candidate.name
        assert candidate.bundle_dir.name == place_of(candidate.name)
        assert (network.runtime, network.threads, network.instances) == (
            candidate.runtime, candidate.threads, candidate.instances,
        )  # fmt: skip
    two = next(c for c in wide.result.candidates if c.instances == 2)
    assert two.bundle_dir is not None
    pipeline = Pipeline.open(two.bundle_dir, manifest_file.read(two.bundle_dir))
    assert pipeline.instances == 2
    pipeline.close()


def test_points_share_the_files_that_their_recipe_made_once(wide: Searched) -> None:
    inodes: dict[str, set[int]] = {}
    for candidate in wide.result.candidates:
        assert candidate.bundle_dir is not None
        made = f"{candidate.member} {candidate.name.partition('@')[0]}"
        status = (candidate.bundle_dir / "model.onnx").stat()
        inodes.setdefault(made, set()).add(status.st_ino)
    assert len(inodes) == 6
    assert all(len(each) == 1 for each in inodes.values())


def test_recipes_that_come_to_the_same_bytes_are_measured_once(task: OptimizeTask) -> None:
    twice = (
        StepSpec(name="ort-int8", config={"reduce_range": False, "weights": "s8"}),
        StepSpec(name="ort-int8", config={"reduce_range": False, "rows": 512}),
    )
    one = replace(task, members=task.members[LARGE:], recipes=(StepSpec(name="fp32"), *twice))
    table = Timetable(times)
    result = optimize(one, measurer=table)
    first, second = result.candidates[1:]
    assert [name for name, _ in table.measured] == ["large/fp32", first.name]
    assert second.notes[-1] == f"the same files as {first.name}: not measured again"
    assert (second.verdict, second.latency_ms) == (first.verdict, first.latency_ms)
    assert second.bundle_dir is not None
    assert manifest_file.read(second.bundle_dir).variant == second.name
    assert (result.points, first.selected, second.selected) == (2, True, False)


def test_an_exhaustive_search_measures_every_point_in_full(joint: OptimizeTask) -> None:
    result = optimize(replace(joint, exhaustive=True), measurer=Timetable(times))
    assert (result.points, result.measured_fraction) == (12, 1.0)


def test_instances_that_the_device_has_no_memory_for_are_refused(
    joint: OptimizeTask, tmp_path: Path
) -> None:
    directory = tmp_path / "profiles"
    directory.mkdir()
    tight = load_profile("this-machine").model_copy(
        update={"live": False, "memory_mib": Figure[int](value=64, source="a test")}
    )
    fields = tight.model_dump_json(exclude_none=True)
    (directory / "this-machine.yaml").write_text(fields)
    small = replace(joint, axes=Axes(other_runtimes=False, threads=(), instances=(1, 2)))
    result = optimize(small, measurer=Timetable(times), profile_directory=directory)
    crowded = [c for c in result.candidates if c.instances == 2]
    assert crowded
    assert {c.verdict for c in crowded} == {"FAIL"}
    assert all("2 instances need 100 MiB of 64 MiB" in c.reason for c in crowded)
    assert result.chosen("this-machine").instances == 1


def test_a_second_search_makes_evaluates_and_measures_nothing_again(
    joint: OptimizeTask, tmp_path: Path
) -> None:
    kept = replace(joint, cache_dir=tmp_path / "cache")
    first = optimize(kept, measurer=Timetable(times))
    files = sorted((tmp_path / "cache").rglob("*"))
    again = Timetable(times)
    second = optimize(replace(kept, out_dir=tmp_path / "again"), measurer=again)
    assert (again.measured, again.compared) == ([], [])
    assert second.selected == first.selected
    assert sorted((tmp_path / "cache").rglob("*")) == files


def test_other_data_is_other_work(task: OptimizeTask, tmp_path: Path) -> None:
    kept = replace(task, cache_dir=tmp_path / "cache", members=task.members[LARGE:])
    optimize(kept, measurer=Timetable(times))
    images = task.data.inputs["image"].copy()
    images[0] = 0
    other = replace(kept, data=replace(task.data, inputs={"image": images}))
    table = Timetable(times)
    optimize(other, measurer=table)
    assert len(table.measured) == 2


@pytest.fixture
def stopped(joint: OptimizeTask, tmp_path: Path) -> Iterator[tuple[OptimizeTask, Timetable]]:
    """A search that somebody stopped behind 8 looks, and what was measured until then."""
    kept = replace(joint, cache_dir=tmp_path / "cache")
    table = Timetable(times)

    def stop(step: Progress) -> None:
        if len(table.measured) == 8:
            raise KeyboardInterrupt

    with pytest.raises(SearchInterrupted, match="the same search goes on from there") as caught:
        optimize(kept, measurer=table, progress=stop)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert "\n" not in str(caught.value)
    yield kept, table


def test_a_stopped_search_goes_on_and_does_nothing_twice(
    stopped: tuple[OptimizeTask, Timetable],
) -> None:
    kept, before = stopped
    after = Timetable(times)
    resumed = optimize(kept, measurer=after)
    assert set(before.measured).isdisjoint(after.measured)
    whole = Timetable(times)
    fresh = optimize(replace(kept, cache_dir=None), measurer=whole)
    assert sorted(before.measured + after.measured) == sorted(whole.measured)
    assert resumed.selected == fresh.selected


KILLED = """
    import os, pickle, signal, sys
    from pathlib import Path
    from optimizer.search import optimize
    from tests.optimizer.test_search_joint import times
    from tests.optimizer.timetable import Timetable

    task = pickle.loads(Path(sys.argv[1]).read_bytes())
    table = Timetable(times)

    def stop(step):
        if len(table.measured) == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    optimize(task, measurer=table, progress=stop)
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(joint: OptimizeTask, tmp_path: Path) -> None:
    kept = replace(joint, cache_dir=tmp_path / "cache")
    (tmp_path / "task").write_bytes(pickle.dumps(kept))
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "task")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    after = Timetable(times)
    resumed = optimize(kept, measurer=after)
    whole = Timetable(times)
    fresh = optimize(replace(kept, cache_dir=None), measurer=whole)
    assert len(after.measured) == len(whole.measured) - 10
    assert resumed.selected == fresh.selected


def test_a_damaged_cache_costs_time_and_nothing_else(joint: OptimizeTask, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = replace(joint, cache_dir=cache)
    first = optimize(kept, measurer=Timetable(times))
    for path in cache.glob("*/*/*"):
        path.unlink()
        path.write_bytes(b"spoiled")
    second = optimize(replace(kept, out_dir=tmp_path / "again"), measurer=Timetable(times))
    assert second.selected == first.selected
    chosen = second.chosen("this-machine")
    assert chosen.bundle_dir is not None
    Pipeline.open(chosen.bundle_dir, manifest_file.read(chosen.bundle_dir)).close()


def test_without_a_cache_directory_nothing_is_left_behind(task: OptimizeTask) -> None:
    optimize(replace(task, members=task.members[LARGE:]), measurer=Timetable(times))
    assert [path.name for path in task.out_dir.iterdir()] == ["this-machine"]


def test_a_full_disk_is_one_clear_line(task: OptimizeTask) -> None:
    """What a file system without room raises, raised by a measurer that writes."""

    class Full(Timetable):
        def measure(self, *args: object, **more: object) -> None:  # type: ignore[override]
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull, match="is full; what is finished is kept") as caught:
        optimize(task, measurer=Full(times))
    assert "\n" not in str(caught.value)


def test_a_full_disk_while_files_are_made_ends_the_search_too(task: OptimizeTask) -> None:
    def full(context: PassContext, config: RecipeConfig) -> Artifact:
        if context.seed != FULL_SEED:  # it stays registered for the tests behind this one
            raise RecipeFailed("for one test only")
        raise OSError(28, "No space left on device")

    with registering("a test"):
        recipe("full-disk", runtimes=("onnxruntime",), precision="fp32", config=RecipeConfig)(full)
    with pytest.raises(DiskFull, match="what is finished is kept"):
        optimize(
            replace(task, recipes=(StepSpec(name="full-disk"),), seed=FULL_SEED),
            measurer=Timetable(times),
        )


def test_a_time_limit_ends_the_search_with_what_it_has(joint: OptimizeTask) -> None:
    table = Timetable(times)
    result = optimize(
        replace(joint, time_limit_s=12),
        measurer=table,
        clock=lambda: float(len(table.measured)),  # a second for each measurement
    )
    assert len(table.measured) <= 12
    assert result.selected
    untried = [c for c in result.candidates if c.reason.startswith("not tried")]
    assert untried
    assert untried[0].reason == "not tried: the time limit of 12 s was reached"
    assert len(result.candidates) == 12


def test_progress_tells_the_time_that_is_left(joint: OptimizeTask) -> None:
    table, seen = Timetable(times), list[Progress]()
    optimize(joint, measurer=table, progress=seen.append, clock=lambda: float(len(table.measured)))
    fractions = [step.fraction for step in seen]
    assert fractions == sorted(fractions)
    assert (fractions[-1], seen[-1].left_s) == (1.0, 0.0)
    assert seen[0].left_s is None
    middle = seen[len(seen) // 2]
    assert middle.left_s is not None
    assert 0 < middle.left_s < 200


def test_never_slower_holds_where_no_recipe_makes_fp32(task: OptimizeTask) -> None:
    one = replace(task, members=task.members[LARGE:], recipes=(StepSpec(name="ort-int8"),))
    table = Timetable(lambda manifest: 5.0 if manifest.network.precision == "int8" else 1.0)
    result = optimize(one, measurer=table)
    assert table.compared == [("large/fp32", "large/ort-int8")]
    (only,) = result.candidates
    assert only.selected
    assert "0.20× as fast as large/fp32" in only.notes[-1]


def really(manifest: Manifest) -> float:
    """fp32 on four threads is the fastest of all."""
    network = manifest.network
    hidden = (network.precision, network.runtime, network.threads) == ("fp32", "onnxruntime", 4)
    return 0.5 if hidden else times(manifest)


def test_an_fp32_that_was_left_out_and_is_faster_is_measured_and_wins(joint: OptimizeTask) -> None:
    table = Timetable(really, briefly=times)
    task = replace(joint, axes=Axes(threads=(1, 2, 4), instances=(1,)))
    result = optimize(task, measurer=table)
    chosen = result.chosen("this-machine")
    assert (chosen.precision, chosen.runtime, chosen.threads) == ("fp32", "onnxruntime", 4)
    assert (chosen.fidelity, chosen.verdict) == ("full", "PASS")
    in_full = [name for name, fidelity in table.measured if fidelity == "full"]
    assert in_full[-1] == chosen.name
    assert result.measured == len(in_full)
