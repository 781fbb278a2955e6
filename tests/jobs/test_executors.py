"""Child processes: answers, one-line errors, death, cancellation, the lock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloud.jobs.errors import ChildDied, JobCancelled, StepFailed, StepTimeout
from cloud.jobs.executors import LocalProcess

YAML = """\
name: tiny
model: tiny
labels: ["0", "1"]
dataset: {load: "data:load"}
family: {build: "data:build", members: {only: {}}}
code: [data.py]
inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]
outputs: [{name: scores, datatype: FP32, shape: [-1, 2]}]
pipeline: [model, classify]
profiles: {this-machine: {}}
"""


class Bench:
    """A project of two lines, and an executor to run its `load` with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project_dir = directory / "project"
        self.project_dir.mkdir(parents=True)
        (self.project_dir / "skerry.yaml").write_text(YAML)
        self.log = directory / "job.log"
        self.progress: list[tuple[float, str]] = []

    def load(
        self,
        body: str,
        *,
        executor: LocalProcess | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, object]:
        (self.project_dir / "data.py").write_text(
            f"import os, time\nimport numpy as np\ndef build(): ...\ndef load():\n    {body}\n"
        )
        work = self.directory / f"work-{time.monotonic_ns()}"
        work.mkdir()
        return dict(
            (executor or LocalProcess(self.directory / "lock", threads=1)).run(
                "load",
                {"project_dir": str(self.project_dir)},
                work,
                self.log,
                progress=lambda share, text, left_s=None: self.progress.append((share, text)),
                cancelled=cancelled,
            )
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


GOOD = "return {'x': np.zeros((4, 2), np.float32)}, ['0', '1', '0', '1']"


def test_a_task_answers_and_reports(bench: Bench) -> None:
    assert bench.load(GOOD) == {"rows": 4}
    assert bench.progress[0] == (0.0, "loading the dataset")


def test_what_a_project_prints_goes_to_the_log_not_into_the_answer(bench: Bench) -> None:
    bench.load(f"print('hello from the project'); os.write(1, b'raw'); {GOOD}")
    assert "hello from the project" in bench.log.read_text()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise KeyError('colour')", "data.py:5: KeyError: 'colour'"),
        ("raise ValueError('two\\nlines')", "data.py:5: ValueError: two lines"),
        ("return 3", "data:load must return (inputs, labels)"),
        ("return {'x': np.zeros((4, 2))}, ['0'] * 4", "input 'x' is float64, expected FP32"),
        ("return {'x': np.zeros((2, 2), np.float32)}, ['0']", "2 rows, but 1 labels"),
        ("return {'x': np.zeros((2, 2), np.float32)}, ['0', '7']", "label '7' is not one of"),
        ("return {'x': np.zeros((2, 2), np.float32)}, ['0', '0']", "no row has the label '1'"),
    ],
)
def test_a_mistake_is_one_line_and_its_traceback_is_in_the_log(
    bench: Bench, body: str, line: str
) -> None:
    with pytest.raises(StepFailed) as caught:
        bench.load(body)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" in bench.log.read_text()


def test_a_child_that_is_killed_is_told_apart_from_one_that_fails(bench: Bench) -> None:
    with pytest.raises(ChildDied, match="SIGKILL"):
        bench.load("os.kill(os.getpid(), 9)")


def test_a_cancelled_task_ends_within_a_second_or_two(bench: Bench) -> None:
    started = time.monotonic()
    with pytest.raises(JobCancelled):
        bench.load("time.sleep(60)", cancelled=lambda: True)
    assert time.monotonic() - started < 3


def test_a_task_that_takes_too_long_is_ended(bench: Bench) -> None:
    with pytest.raises(StepTimeout, match=r"within 0\.5 s"):
        bench.load("time.sleep(60)", executor=LocalProcess(bench.directory / "lock", timeout_s=0.5))


def test_two_heavy_tasks_never_run_at_once(tmp_path: Path) -> None:
    spans: list[tuple[float, float]] = []
    lock = tmp_path / "lock"

    def one(name: str) -> None:
        bench = Bench(tmp_path / name)
        bench.load(
            f"t = time.time(); time.sleep(.3); open({str(tmp_path / name / 'span')!r}, 'w')"
            f".write(f'{{t}} {{time.time()}}'); {GOOD}",
            executor=LocalProcess(lock, threads=1),
        )
        begin, end = (tmp_path / name / "span").read_text().split()
        spans.append((float(begin), float(end)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, ("a", "b")))
    first, second = sorted(spans)
    assert first[1] <= second[0]


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench")
    pid_file = tmp_path / "pid"
    body = f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    script = f"""
from pathlib import Path
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_executors import Bench
bench = Bench.__new__(Bench)
bench.directory = Path({str(tmp_path / "bench")!r})
bench.project_dir = bench.directory / "project"
bench.log = bench.directory / "job.log"
bench.progress = []
bench.load({body!r})
"""
    assert bench.project_dir.is_dir()
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        child = wait_for(lambda: pid_file.exists() and pid_file.read_text())
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not alive(int(child)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(probe: Callable[[], str | bool], timeout_s: float = 20.0) -> str:
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return str(found)
