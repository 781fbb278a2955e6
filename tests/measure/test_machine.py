from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.measure import (
    MeasureBusy,
    MeasureSettings,
    Scenario,
    machine,
    machine_lock,
    measure,
)

HOLDER = """
import sys
from pathlib import Path
from edge_agent.measure import machine_lock
with machine_lock(1, path=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_another_process_waits_for_the_lock_and_gets_it_when_the_holder_dies(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MeasureBusy, match="holds"), machine_lock(0.1, path=path):
            pass
        holder.kill()
        holder.wait()
        with machine_lock(5, path=path):
            pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(RuntimeError), machine_lock(1, path=path):
        raise RuntimeError
    with machine_lock(0, path=path):
        pass


@pytest.fixture
def neighbours() -> Iterator[None]:
    """As many busy neighbours as there are cores, twice over."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * machine.cores())
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.usefixtures("neighbours")
def test_waiting_for_a_core_is_noticed() -> None:
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("this system does not count it")
    before, deadline = machine.waited_s(), time.monotonic() + 10
    while machine.waited_s() - before < 0.05 and time.monotonic() < deadline:
        pass
    assert machine.waited_s() - before >= 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize(
    ("scenario", "concurrency", "qps"),
    [("single_stream", 1, None), ("server", 1, 200.0), ("server", 2, 300.0), ("offline", 2, None)],
)
def test_busy_neighbours_make_a_run_invalid(
    scenario: Scenario, concurrency: int, qps: float | None
) -> None:
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("this system does not count waiting")
    block = np.random.default_rng(0).normal(size=100_000)
    settings = MeasureSettings(min_duration_s=0.5, max_duration_s=2, min_queries=100, attempts=2)
    result = measure(
        lambda _: np.sort(block), scenario=scenario, settings=settings, qps=qps,
        concurrency=concurrency,
    )  # fmt: skip
    assert result.verdict == "INVALID"
    assert "the machine was disturbed" in result.reason
    assert result.runs == 2
    assert result.neighbours_share > 0.2


def test_what_we_use_ourselves_is_no_neighbour_s() -> None:
    """Others may be busy too, but never more than the time there was."""
    if not Path("/proc/stat").exists():
        pytest.skip("this system does not count it")
    ours, others, began = time.process_time(), machine.neighbours_s(), time.monotonic()
    while time.process_time() - ours < 0.5:
        pass
    used_s = machine.neighbours_s() - others
    passed_s = time.monotonic() - began
    assert -0.1 < used_s <= passed_s * machine.cores() - 0.5 + 0.2


def test_the_peak_of_memory_follows_what_is_allocated() -> None:
    if not machine.reset_peak_rss():
        pytest.skip("this system cannot reset the peak")
    before = machine.peak_rss_mib()
    block = bytearray(b"\x01") * (64 * 1024 * 1024)
    assert len(block) and machine.peak_rss_mib() - before > 60
    del block
    machine.reset_peak_rss()
    assert machine.peak_rss_mib() - before < 32


GRANDPARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "b = b'1' * 50_000_000; print('ready', flush=True); input()"])
"""


def test_the_memory_of_children_and_theirs_is_counted_while_they_live() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell")
    before = machine.children_peak_rss_mib()
    with subprocess.Popen(
        [sys.executable, "-c", GRANDPARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        held_mib = machine.children_peak_rss_mib() - before
        child.communicate("\n")
    assert held_mib > 48
    assert machine.children_peak_rss_mib() - before < 48
