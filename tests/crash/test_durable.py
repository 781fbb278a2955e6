"""What a device calls kept is there after a power cut, on a disk that keeps what was synced."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.disk import write_whole
from edge_agent.update.files import Files
from edge_agent.update.journal import Journal
from edge_agent.update.marks import Marks
from edge_agent.wire.messages import UpdateReport
from tests.crash import power, tracer

pytestmark = pytest.mark.skipif(bool(tracer.supported()), reason=tracer.supported())

REPORT = UpdateReport(
    model="digits", target="models/digits/p/1.bundle", version=1, counter=1, generation=1,
    phase="rolled_back", elapsed_s=1.0,
)  # fmt: skip
CUT = """
import sys
from pathlib import Path
from tests.crash import power, test_durable, tracer
root, left = Path(sys.argv[1]), Path(sys.argv[2])
root.mkdir()
disk = power.Disk(root)
ended = tracer.run(lambda: test_durable.{body}(root), root, lambda operation: 0, disk.apply)
power.write(disk.after_power_cut("synced"), left)
sys.exit(ended.status)
"""


def keep_a_mark(root: Path) -> int:
    Marks(root / "new" / "trust" / "marks.sqlite").raise_counter("digits", "p", 7)
    return 0


def keep_an_outcome(root: Path) -> int:
    Journal(root / "update" / "journal.sqlite").settle([REPORT])
    return 0


def stage_a_slot(root: Path) -> int:
    files, slots = Files(), root / "models" / "digits" / "slots"
    files.make_directory(slots / ".tmp")
    files.write(slots / ".tmp" / "manifest.json", b"manifest")
    files.sync_directory(slots / ".tmp")
    files.rename(slots / ".tmp", slots / "slot")
    files.sync_directory(slots)
    return 0


def replace_a_file(root: Path) -> int:
    write_whole(root / "file", b"old")
    write_whole(root / "file", b"new")
    return 0


def after_power_cut(body: str, directory: Path) -> Path:
    """Directory with what is left when the power fails right after `body`."""
    command = [sys.executable, "-c", CUT.format(body=body)]
    subprocess.run([*command, directory / "disk", directory / "left"], check=True, timeout=60)
    return directory / "left"


def test_fault_23_a_mark_survives(tmp_path: Path) -> None:
    left = after_power_cut("keep_a_mark", tmp_path)
    marks = Marks(left / "new" / "trust" / "marks.sqlite")
    assert marks.counter("digits", "p") == 7
    marks.close()


def test_fault_23_an_outcome_survives(tmp_path: Path) -> None:
    left = after_power_cut("keep_an_outcome", tmp_path)
    journal = Journal(left / "update" / "journal.sqlite")
    assert journal.outcome("digits", 1, REPORT.target) == REPORT
    journal.close()


def test_fault_23_a_staged_slot_survives_with_all_directories_above_it(tmp_path: Path) -> None:
    left = after_power_cut("stage_a_slot", tmp_path)
    assert (left / "models/digits/slots/slot/manifest.json").read_bytes() == b"manifest"


def test_fault_23_a_file_that_was_written_whole_survives(tmp_path: Path) -> None:
    left = after_power_cut("replace_a_file", tmp_path)
    assert power.read(left) == {"file": b"new"}


def test_a_transaction_that_is_synced_less_does_not_survive(tmp_path: Path) -> None:
    """The model of the disk is strict enough to see the difference."""
    left = after_power_cut("insert_with_full", tmp_path)
    database = sqlite3.connect(left / "base")
    assert database.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
    database.close()


def insert_with_full(root: Path) -> int:
    database = sqlite3.connect(root / "base", isolation_level=None)
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE numbers(number)")
    database.execute("INSERT INTO numbers VALUES (1)")
    return 0
