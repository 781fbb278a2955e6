"""The demo, run once with everything left running, for the tests that look at what it left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Demo:
    """A finished demo whose processes still run."""

    directory: Path
    output: str
    console_url: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    directory = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "KEEP": "1", "DEMO_DIR": str(directory), "COLUMNS": "200"},
    )  # fmt: skip
    try:
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        address = re.search(r"console\s+(http\S+)", done.stdout)
        assert address is not None, done.stdout[-2000:]
        yield Demo(directory, done.stdout, address.group(1))
    finally:
        for about in directory.glob("devices/*/run/agent.json"):
            subprocess.run(["kill", str(json.loads(about.read_text())["pid"])], check=False)
        subprocess.run(
            [sys.executable, "-m", "cloud.cli.main", "down", "--dir", str(directory / "cloud")],
            cwd=ROOT, check=False, timeout=120,
        )  # fmt: skip
