from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.measure import MeasureBusy, machine, machine_lock

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


def test_waiting_for_a_core_is_noticed() -> None:
    """As many busy neighbours as there are cores, twice over."""
    if not Path("/proc/thread-self/schedstat").exists():
        pytest.skip("this system does not count it")
    neighbours = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * len(os.sched_getaffinity(0)))
    ]
    try:
        before, deadline = machine.waited_s(), time.monotonic() + 10
        while machine.waited_s() - before < 0.05 and time.monotonic() < deadline:
            pass
        assert machine.waited_s() - before >= 0.05
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def test_the_peak_of_memory_follows_what_is_allocated() -> None:
    if not machine.reset_peak_rss():
        pytest.skip("this system cannot reset the peak")
    before = machine.peak_rss_mib()
    block = bytearray(b"\x01") * (64 * 1024 * 1024)
    assert len(block) and machine.peak_rss_mib() - before > 60
    del block
    machine.reset_peak_rss()
    assert machine.peak_rss_mib() - before < 32
