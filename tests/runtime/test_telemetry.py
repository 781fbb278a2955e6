from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

SCRIPT = """
from edge_agent.runtime.telemetry import forbid_telemetry
forbid_telemetry()
import openvino
assert openvino.Core().available_devices
"""


def test_openvino_leaves_no_identity_for_its_vendor(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        env={**os.environ, "HOME": str(home)},
        timeout=60,
    )
    assert list(home.iterdir()) == []
