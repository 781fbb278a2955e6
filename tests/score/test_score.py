"""Batch scoring: every row has its answer or its error, and the output is whole or not there."""

from __future__ import annotations

import io
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from edge_agent import Predictor
from edge_agent.__main__ import main
from edge_agent.pipeline.errors import DatasetError
from edge_agent.score import BadTarget, Progress, duration, score
from edge_agent.score_output import open_output
from edge_agent.wire.manifest import Manifest, StepSpec, TensorSpec
from tests.predictor.bundles import BLIND, DARK, LIGHT, TOP, install, write_bundle

WORDS = {"dark": DARK, "light": LIGHT, "top": TOP}
PREDICTED = ["dark", "light", "top", "light", "dark"]


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_bundle(tmp_path / "bundle", max_batch=2)


@pytest.fixture
def predictor(bundle):
    with Predictor(bundle) as predictor:
        yield predictor


def rows_of(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, object]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


def source(directory: Path, kind: str, bad: bool = False) -> Path:
    """Five rows; with `bad` the second one is refused by the checker and the fourth is broken."""
    images = [WORDS[word] for word in PREDICTED]
    if bad:
        images[1] = BLIND
    path = directory / f"input{kind}"
    if kind == ".npz":
        np.savez(path, image=np.array(images, np.uint8), id=[f"n{i}" for i in range(5)])
    elif kind == ".jsonl":
        lines = [json.dumps({"id": f"n{i}", "inputs": {"image": v}}) for i, v in enumerate(images)]
        if bad:
            lines[3] = "{broken"
        path.write_text("\n".join(lines) + "\n")
    elif kind == ".parquet":
        table = {"id": [f"n{i}" for i in range(5)], "image": images}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    else:
        path.mkdir()
        for index, image in enumerate(images):
            Image.fromarray(np.array(image, np.uint8)).save(path / f"n{index}.png")
        if bad:
            (path / "n3.png").write_bytes(b"broken")
    return path


@pytest.mark.parametrize("target", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("kind", [".npz", ".jsonl", ".parquet", ""])
def test_every_row_is_answered_in_order(predictor, tmp_path, kind, target):
    scored = score(predictor, source(tmp_path, kind), tmp_path / target, io.StringIO())
    assert (scored.rows, scored.errors) == (5, 0)
    rows = rows_of(tmp_path / target)
    assert [str(row["id"]).removesuffix(".png") for row in rows] == [f"n{i}" for i in range(5)]
    assert [row["label"] for row in rows] == PREDICTED
    assert all(row["error"] is None for row in rows)
    one = predictor.predict_items([DARK])[0]
    assert rows[0]["score"] == pytest.approx(one["score"])
    assert rows[0]["scores"] == pytest.approx(one["scores"])


@pytest.mark.parametrize("target", ["out.parquet", "out.jsonl"])
@pytest.mark.parametrize("kind", [".jsonl", ""])
def test_a_bad_row_is_a_row_with_an_error_and_costs_no_other_its_answer(
    predictor, tmp_path, kind, target
):
    scored = score(predictor, source(tmp_path, kind, bad=True), tmp_path / target, io.StringIO())
    assert (scored.rows, scored.errors) == (5, 2)
    rows = rows_of(tmp_path / target)
    assert all(set(row) == {"id", "label", "scores", "score", "error"} for row in rows)
    good = {str(row["id"])[:2]: row["label"] for row in rows if row["error"] is None}
    assert good == {"n0": "dark", "n2": "top", "n4": "dark"}
    failed = [str(row["error"]) for row in rows if row["error"] is not None]
    assert any("out_of_range" in error for error in failed)
    assert len(failed) == 2
    assert all(row["label"] is None for row in rows if row["error"] is not None)


def test_columns_of_parquet_have_the_types_of_the_outputs(predictor, tmp_path):
    score(predictor, source(tmp_path, ".npz"), tmp_path / "out.parquet", io.StringIO())
    schema = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "id": "string", "label": "string", "scores": "list<element: float>",
        "score": "float", "error": "string",
    }  # fmt: skip


def test_outputs_of_every_kind_have_a_type():
    from edge_agent.score_output import ParquetFile

    outputs = (
        TensorSpec(name="boxes", datatype="FP32", shape=(-1, 10, 4)),
        TensorSpec(name="box_scores", datatype="FP32", shape=(-1, 10)),
        TensorSpec(name="box_labels", datatype="INT64", shape=(-1, 10)),
        TensorSpec(name="count", datatype="INT64", shape=(-1,)),
        TensorSpec(name="big", datatype="UINT64", shape=(-1,)),
        TensorSpec(name="wide", datatype="FP64", shape=(-1, -1, 2)),
        TensorSpec(name="text", datatype="BYTES", shape=(-1,)),
        TensorSpec(name="flag", datatype="BOOL", shape=(-1,)),
        TensorSpec(name="id", datatype="INT8", shape=(-1,)),
    )
    manifest = Manifest(
        model="m", version=1, profile="p", variant="v", inputs=(), outputs=outputs,
        labels=("cat",), pipeline=(StepSpec(name="model"),),
        network={"runtime": "onnxruntime", "file": "m.onnx", "inputs": (), "outputs": ()},
        files=(),
    )  # fmt: skip
    file = io.BytesIO()
    written = ParquetFile(file, manifest)
    boxes = [{"box": [0.0, 0.0, 1.0, 1.0], "score": 0.5, "label": "cat"}]
    answer = {
        "boxes": boxes, "big": 2**64 - 1, "wide": [[0.1, None]], "text": "é", "flag": True, "id": 7,
    }  # fmt: skip
    written.answered(["a"], [answer])
    written.answered(["b"], [{**answer, "boxes": []}])
    written.failed("c", "why")
    written.close()
    first, second, third = pyarrow.parquet.read_table(io.BytesIO(file.getvalue())).to_pylist()
    assert first == {**answer, "id": "a", "output_id": 7, "error": None}
    assert (second["id"], second["boxes"]) == ("b", [])
    assert (third["id"], third["error"], third["boxes"]) == ("c", "why", None)


def test_a_network_of_a_fixed_batch_is_given_whole_batches(tmp_path, bundle):
    manifest = Manifest.decode((bundle / "manifest.json").read_bytes())
    [image] = manifest.inputs
    fixed = manifest.model_copy(
        update={"inputs": (image.model_copy(update={"shape": (2, 2, 2)}),), "golden": None}
    )
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_bytes(fixed.encode())
    with Predictor(bundle) as predictor:
        scored = score(predictor, source(tmp_path, ".npz"), tmp_path / "out.jsonl", io.StringIO())
    assert (scored.rows, scored.errors) == (5, 1)
    labels = [row["label"] for row in rows_of(tmp_path / "out.jsonl")]
    assert [label for label in labels if label] == PREDICTED[:4]


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_ids_and_errors_that_are_no_text_are_written_as_escapes(predictor, tmp_path, name):
    manifest = predictor.manifest
    with (tmp_path / name).open("wb") as file:
        output = open_output(tmp_path / name, file, manifest)
        output.answered(["a\ud800"], predictor.predict_items([DARK]))
        output.failed("b\udfff", "because of \ud800")
        output.close()
    first, second = rows_of(tmp_path / name)
    assert (first["id"], first["label"], output.unfit) == ("a\\ud800", "dark", 0)
    assert (second["id"], second["error"]) == ("b\\udfff", "because of \\ud800")


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_an_answer_that_cannot_be_written_is_an_error_of_its_row(predictor, tmp_path, name):
    [good] = predictor.predict_items([DARK])
    wrong = {**good, "label": "\ud800"}
    deep = {**good, "scores": [[0.1, 0.2, 0.7]]}
    with (tmp_path / name).open("wb") as file:
        output = open_output(tmp_path / name, file, predictor.manifest)
        output.answered(["a", "b", "c", "d"], [good, wrong, deep, good])
        output.close()
    rows = rows_of(tmp_path / name)
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    errors = [str(row["error"] or "") for row in rows]
    typed = name.endswith("parquet")  # the other form holds any list
    assert [error[:29] for error in errors] == [
        "", "the answer cannot be written:", "the answer cannot be written:" if typed else "", "",
    ]  # fmt: skip
    assert output.unfit == (2 if typed else 1)
    assert (rows[1]["label"], rows[3]["label"]) == (None, "dark")


def test_rows_are_not_gathered_in_memory(predictor, tmp_path):
    (tmp_path / "in.jsonl").write_text((json.dumps({"image": DARK}) + "\n") * 3_000)
    tracemalloc.start()
    try:
        score(predictor, tmp_path / "in.jsonl", tmp_path / "out.jsonl", io.StringIO())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 300_000 < (tmp_path / "out.jsonl").stat().st_size


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out.csv", "must be named .parquet or .jsonl"),
        ("out", "must be named"),
        ("no/out.jsonl", "there is no directory"),
        ("input.jsonl", "is the input itself"),
        ("full.jsonl", "is a directory"),
    ],
)
def test_a_target_that_cannot_be_is_told_before_anything_is_read(
    predictor, tmp_path, target, message
):
    (tmp_path / "full.jsonl").mkdir()
    path = source(tmp_path, ".jsonl")
    with pytest.raises(BadTarget, match=message):
        score(predictor, path, tmp_path / target, io.StringIO())
    assert path.stat().st_size > 0


def test_what_was_there_stays_when_the_source_cannot_be_read(predictor, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("before")
    with pytest.raises(DatasetError):
        score(predictor, tmp_path / "none.npz", target, io.StringIO())
    assert target.read_text() == "before"
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_a_disk_that_refuses_leaves_nothing_behind(bundle, tmp_path, name):
    (tmp_path / "in.jsonl").write_text((json.dumps({"image": DARK}) + "\n") * 3000)
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "score", "--dir", str(bundle),
         "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / name)],
        capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        ),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "in.jsonl"]


# ── progress ─────────────────────────────────────────────────────────────────────────────────────


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_shows_one_line_with_the_time_that_is_left():
    clock, terminal = Clock(), Terminal()
    progress = Progress(10_000, terminal, clock)
    clock.now += 0.1
    progress.add(100, 0)
    assert terminal.getvalue() == ""
    clock.now += 0.9
    progress.add(900, 3)
    assert (
        terminal.getvalue() == "\r1,000 of 10,000 · 1,000 rows/s · 3 with errors · 9 s left\x1b[K"
    )
    progress.end()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_elsewhere_a_line_is_written_now_and_then():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(None, stream, clock)
    for _ in range(200):
        clock.now += 0.125
        progress.add(1, 0)
    progress.end()
    assert stream.getvalue().splitlines() == ["80 rows · 8 rows/s", "160 rows · 8 rows/s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7260, "2 h 1 min")],
)
def test_a_time_is_told_as_a_person_reads_it(seconds, text):
    assert duration(seconds) == text


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def command(capsys):
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["score", *map(str, arguments)])
        said = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, said.out, said.err

    return run


def test_the_command_scores_by_an_installed_model_and_says_how_many_had_errors(
    command, bundle, tmp_path
):
    install(tmp_path / "agent", bundle)
    path, target = source(tmp_path, ".jsonl", bad=True), tmp_path / "out.parquet"
    code, said, wrong = command("--dir", tmp_path / "agent", "--input", path, "--output", target)
    assert (code, wrong) == (0, "")
    assert "5 rows in" in said
    assert "3 answered, 2 with errors, in" in said
    assert len(rows_of(target)) == 5


def test_the_command_fails_when_no_row_could_be_answered(command, bundle, tmp_path):
    (tmp_path / "in.jsonl").write_text("{\n")
    code, said, _ = command(
        "--dir", bundle, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"
    )
    assert code == 1
    assert "0 answered, 1 with errors" in said


def test_the_command_fails_when_the_bundle_is_damaged(command, bundle, tmp_path):
    (bundle / "model.onnx").write_bytes(b"")
    code, said, wrong = command(
        "--dir", bundle, "--input", tmp_path, "--output", tmp_path / "out.jsonl"
    )
    assert (code, said) == (1, "")
    assert "model.onnx differs" in wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dir", "{bundle}"), "required"),
        (("--dir", "{tmp}", "--input", "x.npz", "--output", "o.jsonl"), "neither"),
        (("--dir", "{bundle}", "--input", "x.npz", "--output", "{tmp}/o.jsonl"), "no such file"),
        (("--dir", "{bundle}", "--input", "{tmp}", "--output", "{tmp}/o.txt"), "must be named"),
        (
            ("--dir", "{bundle}", "--model", "no", "--input", "x", "--output", "{tmp}/o.jsonl"),
            "'shades'",
        ),
    ],
)
def test_what_is_wrong_is_one_line(command, bundle, tmp_path, arguments, message):
    code, said, wrong = command(*(each.format(bundle=bundle, tmp=tmp_path) for each in arguments))
    assert (code, said) == (2, "")
    assert message in wrong
    assert wrong.count("\n") == 1


@pytest.mark.parametrize(("place", "said"), [("/dev/full", "No space left"), (None, "Bad file")])
def test_an_output_that_takes_no_result_is_named(bundle, tmp_path, place, said):
    path = source(tmp_path, ".jsonl")
    shell = '"$@" >&-' if place is None else f'"$@" >{place}'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "edge_agent", "score",
         "--dir", str(bundle), "--input", str(path), "--output", str(tmp_path / "out.jsonl")],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(f"skerry-agent: standard output: {said}")
    assert len(rows_of(tmp_path / "out.jsonl")) == 5


def test_progress_that_nobody_can_read_does_not_end_the_work():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def isatty(self) -> bool:
            return True

    clock = Clock()
    progress = Progress(None, Gone(), clock)
    clock.now += 60
    progress.add(1, 0)
    progress.end()
    assert progress.rows == 1


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_leaves_no_half_file(bundle, tmp_path, signum):
    pipe = tmp_path / "in.jsonl"
    line = (json.dumps({"image": DARK}) + "\n").encode()
    pipe.write_bytes(line * 400_000)
    main, terminal = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "score", "--dir", str(bundle),
         "--input", str(pipe), "--output", str(tmp_path / "out.jsonl")],
        stderr=terminal, stdout=subprocess.PIPE,
        # whoever runs the tests under nohup, or in the background of a shell, has it ignored
        preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL),
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(main, 1000).decode()  # its first progress line: it is at work
    assert "rows" in shown
    assert list(tmp_path.glob(".out.jsonl.*.tmp"))
    running.send_signal(signum)
    rest: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(main, rest))
    reader.start()
    assert running.wait(20) == 130
    reader.join()
    assert running.stdout is not None
    running.stdout.close()
    os.close(main)
    assert b"stopped" in b"".join(rest)
    assert b"Traceback" not in b"".join(rest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "in.jsonl"]


def _drain(descriptor: int, into: list[bytes]) -> None:
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            return
        if not part:
            return
        into.append(part)
