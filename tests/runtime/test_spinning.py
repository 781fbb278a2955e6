"""Threads of a session that have nothing to do take no processor time."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime import open_session

from .networks import deep_spec, write_deep

WIDTH = 256
TASKS = Path("/proc/self/task")
PAUSES = 20
PAUSE_S = 0.01


def threads() -> set[str]:
    return {path.name for path in TASKS.iterdir()}


def cpu_s(names: set[str]) -> float:
    """Processor seconds of these threads."""
    return sum(int((TASKS / name / "schedstat").read_text().split()[0]) for name in names) / 1e9


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's schedstat")
def test_no_thread_spins_after_a_run(tmp_path: Path) -> None:
    spec = deep_spec("onnxruntime", WIDTH).model_copy(update={"threads": 3})
    before = threads()
    session = open_session(write_deep(tmp_path / "model.onnx", WIDTH, 8), spec)
    pool = threads() - before
    assert len(pool) >= spec.threads - 1
    x = {"x": np.ones((64, WIDTH), np.float32)}
    idle_s = 0.0
    for _ in range(PAUSES):
        session.run(x)
        busy_s = cpu_s(pool)
        threading.Event().wait(PAUSE_S)
        idle_s += cpu_s(pool) - busy_s
    assert cpu_s(pool) > idle_s, "they take part in the runs"
    session.close()
    assert idle_s < PAUSES * PAUSE_S / 5
