"""A budget that no variant meets: the nearest miss in one line, exit code 1, no version."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.client.client import Client
from tests.e2e.conftest import ROOT, Demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_nearest_miss_is_named_and_no_version_appears(demo: Demo, tmp_path: Path) -> None:
    project = tmp_path / "strict"
    shutil.copytree(ROOT / "examples" / "digits", project)
    path = project / "skerry.yaml"
    text = path.read_text()
    for old, new in (
        ("name: digits\nmodel: digits", "name: strict\nmodel: strict"),
        ("artifact_kib: 100", "artifact_kib: 3"),
        ("recipes: [fp32, ort-int8, openvino-int8]", "recipes: [fp32]"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    cloud = demo.directory / "cloud"
    skerry("apply", project, "--dir", cloud)
    done = skerry("build", "strict", "--dir", cloud, code=1)
    [line] = done.stderr.strip().splitlines()
    assert "no variant meets the budget of profile 'generic-x86-64'" in line
    assert "nearest is small/fp32: bundle" in line
    token = (cloud / "tokens" / "admin").read_text().strip()
    with Client(demo.console_url.partition("/?")[0], token) as api:
        assert not [version for version in api.every_model() if version.model == "strict"]
        [job] = [job for job in api.jobs() if job.project == "strict"]
        assert job.state == "failed"
        assert "small/fp32" in api.job_report(job.id)
    why = skerry("optimize", "--explain", job.id, "--dir", cloud, "--profile", "generic-x86-64")
    assert "no variant meets the budget" in why.stdout
    assert "✗ bundle" in why.stdout


def skerry(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cloud.cli.main", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done
