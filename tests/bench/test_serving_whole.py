"""The serving benchmark as a whole, shortened: every step runs, and its last line is the result."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from bench.loads import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is missing"),
]


def test_the_whole_benchmark_runs_and_ends_with_its_result() -> None:
    command = [sys.executable, "-m", "bench.serving", "--short"]
    command += ["--seconds", "1", "--idle-seconds", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(report.TO_REACH) <= set(said)
    assert said["dropped_on_swap"] == 0, said["swap"]
    assert said["rps"] > 0 and said["cpu_us_per_request"] > 0 and said["pss_mb"] > 0
    for name in ("conv", "mlp"):
        overload = said["overload"][name]
        judged = ("in_time", "late", "shed", "failed", "broken", "unsent")
        assert overload["offered"] == sum(overload[key] for key in judged) > 0
        assert overload["failed"] == 0
    assert list(said["agent"]) == ["tiny_binary_8", "tiny_json_8"]
