"""`skerry optimize` on an ONNX file: what it leaves, and bad input in one line each."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.standalone.networks import network, save_rows

from .conftest import Command, Done

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--quick", "--recipes", "fp32,ort-int8")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return network(tmp_path / "tiny.onnx")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return save_rows(tmp_path / "rows.npz")


def assert_refused(done: Done, *parts: str) -> None:
    assert done.code == 2, done.err
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    for part in parts:
        assert part in lines[0]


# ── refused before anything is written ───────────────────────────────────────────────────────────


def test_bad_input_is_one_line_and_nothing_is_written(
    command: Command, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def run(*arguments: object) -> Done:
        return command("optimize", *arguments, "-o", out)

    text = tmp_path / "text.onnx"
    text.write_text("no network")
    assert_refused(run(), "a project's directory, or FILE.onnx")
    assert_refused(run(tmp_path / "none.onnx"), "none.onnx: no such file")
    assert_refused(run(tmp_path), "skerry.yaml")
    assert_refused(run(text, "--data", rows), "text.onnx: not an ONNX file")
    assert_refused(run(tiny), "--data is missing")
    assert_refused(run(tiny, "--data", tiny), "cannot be read")
    good = (tiny, "--data", rows)
    assert_refused(run(*good, "--profile", "raspbery-pi-5"), "did you mean 'raspberry-pi-5'?")
    assert_refused(run(*good, "--recipes", "fp32,ort-int9"), "did you mean 'ort-int8'?")
    assert_refused(run(*good, "--latency-ms", -1), "latency_ms", "greater than 0")
    assert_refused(run(*good, "--qps", 10), "qps needs latency_ms")
    assert_refused(run(*good, "--prefer", "size"), "prefer", "'speed' or 'accuracy'")
    assert_refused(run(*good, "--primary", "f1"), "macro_f1")
    assert_refused(run(*good, "--min-accuracy", "0.9"), "'0.9' is not NAME=SHARE")
    assert_refused(run(*good, "--min-accuracy", "f1=0.9"), "min_accuracy")
    assert_refused(run(*good, "--time-limit-s", 0), "time-limit")
    assert_refused(run("--explain", out), "no such report")
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_named(
    command: Command, tiny: Path, rows: Path
) -> None:
    done = command("optimize", tiny, "--data", rows, "-o", rows / "out")
    assert_refused(done, str(rows / "out"), "Not a directory")


def test_devices_to_measure_on_need_a_control_plane(
    command: Command, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    done = command(
        "optimize", tiny, "--data", rows, "--on", "device:cam-1", "--dir", tmp_path / "none",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert_refused(done, "no control plane in", "skerry up --dir")
    assert not (tmp_path / "out").exists()


def test_what_a_project_says_itself_is_not_taken_from_options(command: Command) -> None:
    project = ROOT / "examples" / "digits"
    done = command("optimize", project, "--latency-ms", 5)
    assert_refused(done, "skerry.yaml")
    done = command("optimize", project, "--profile", "this-machin")
    assert_refused(done, "did you mean 'this-machine'?")


# ── searches ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_search_leaves_bundles_and_report_and_tells_why(
    command: Command, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("optimize", tiny, "--data", rows, *QUICK, "-o", out)
    done = command(*run, "--latency-ms", 500, "--percentile", 0.9)
    assert done.code == 0, done.err
    assert "tiny: chosen" in done.out
    facts = json.loads((out / "report.json").read_text())
    names = [each["name"] for each in facts["candidates"]]
    assert {"model/fp32", "model/ort-int8"} <= set(names)
    assert facts["selected"]["this-machine"] in done.out
    assert "tiny · version 1" in (out / "report.html").read_text()
    for name in names:
        manifest = out / "bundles" / "this-machine" / name.replace("/", "-") / "manifest.json"
        assert json.loads(manifest.read_text())["variant"] == name

    why = command("optimize", "--explain", out, "--profile", "this-machine")
    assert why.code == 0, why.err
    assert facts["selected"]["this-machine"] in why.out
    assert "✓ p90 latency" in why.out
    wrong = command("optimize", "--explain", out, "--profile", "this-machin")
    assert_refused(wrong, "did you mean 'this-machine'?")

    before = kept(out)
    missed = command(*run, "--artifact-kib", 0.5)
    assert missed.code == 1
    assert "no variant meets the budget of profile 'this-machine'; nearest is" in missed.err
    assert "bundle" in missed.err
    assert len(missed.err.strip().splitlines()) == 1
    assert before.items() <= kept(out).items(), "what was made is used again"


def kept(out: Path) -> dict[str, float]:
    """When each finished artifact of the cache was written, by its place."""
    found = (out / "cache" / "optimizer-cache").glob("a*/*/entry.json")
    return {str(path): path.stat().st_mtime for path in found}


def started(*arguments: object, limit_bytes: int = 0) -> subprocess.Popen[str]:
    def prepare() -> None:
        # a run of the tests in the background has Ctrl-C ignored, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "cloud.cli.main", "optimize", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
        env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(
    command: Command, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(tiny, "--data", rows, *QUICK, "-o", out)
    wait_for(lambda: len(kept(out)) > 0, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert len(err.strip().splitlines()) == 1, err
    assert "the same command goes on from there" in err
    before = kept(out)
    assert before
    done = command("optimize", tiny, "--data", rows, *QUICK, "-o", out)
    assert done.code == 0, done.err
    assert before.items() <= kept(out).items()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_cache_stays_intact(
    command: Command, rows: Path, tmp_path: Path
) -> None:
    large, out = network(tmp_path / "large.onnx", hidden=8_000), tmp_path / "out"
    process = started(large, "--data", rows, *QUICK, "-o", out, limit_bytes=100_000)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert "full" in err
    done = command("optimize", large, "--data", rows, *QUICK, "-o", out)
    assert done.code == 0, done.err
    assert "damaged" not in (out / "optimize.log").read_text()


@pytest.mark.slow
def test_a_second_search_on_the_same_output_is_refused(
    command: Command, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(tiny, "--data", rows, *QUICK, "-o", out)
    wait_for(lambda: (out / "cache" / "work").exists(), process)
    done = command("optimize", tiny, "--data", rows, *QUICK, "-o", out)
    assert_refused(done, "another search is writing to")
    process.kill()
    process.communicate()
