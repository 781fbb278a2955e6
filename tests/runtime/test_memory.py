"""What a closed session leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.runtime import available, give_back
from tests.runtime.networks import write_deep

WIDTH, LAYERS = 256, 240  # 60 MiB of weights in pieces that the C library keeps for itself
MIB = 1 << 20

SCRIPT = """
import gc, sys
from pathlib import Path
import numpy as np
from edge_agent.runtime import give_back, open_session
from edge_agent.wire.manifest import ModelSpec, TensorSpec

gc.disable()  # nothing may depend on a collection that comes later
path, runtime, width = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, width)) for name in "xy")
spec = ModelSpec(runtime=runtime, file=path.name, inputs=(x,), outputs=(y,))

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def version():
    session = open_session(path, spec)
    session.run({"x": np.ones((2, width), np.float32)})
    loaded = resident_bytes()
    session.close()
    give_back()
    return loaded

version()  # what a runtime keeps for good is there after the first
baseline = resident_bytes()
for _ in range(5):
    print(version() - baseline, resident_bytes() - baseline)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads resident memory in /proc")
@pytest.mark.parametrize("runtime", sorted(available()))
def test_five_versions_one_after_the_other_leave_nothing(runtime: str, tmp_path: Path) -> None:
    path = write_deep(tmp_path / "model.onnx", WIDTH, LAYERS, matrices=LAYERS)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), runtime, str(WIDTH)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    rounds = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rounds) == 5
    for loaded, left in rounds:
        assert loaded > 50 * MIB  # the measurement sees the weights
        assert left < 12 * MIB


def test_giving_back_twice_is_harmless() -> None:
    give_back()
    assert give_back() in (True, False)
