"""The tools that crash a device: they see every operation, and a power cut takes what it may."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import power, tracer

pytestmark = pytest.mark.skipif(bool(tracer.supported()), reason=tracer.supported())

ALONE = """
import json, sys
from pathlib import Path
from tests.crash import tracer
from tests.crash.test_tracer import {body}
root, at, error = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
seen = []
decide = lambda operation: error if operation.number == at else 0
ended = tracer.run(lambda: {body}(root), root, decide, seen.append)
print(json.dumps([ended.status, ended.operations, [str(each) for each in seen]]))
"""


def write_and_rename(root: Path) -> int:
    (root / "new").write_bytes(b"new")
    (root / "new").replace(root / "file")
    return 7


def insert(root: Path) -> int:
    database = sqlite3.connect(root / "base", isolation_level=None)
    database.execute("CREATE TABLE IF NOT EXISTS numbers(number)")
    database.execute("INSERT INTO numbers VALUES (1)")
    database.close()
    return 0


def refuse_is_seen(root: Path) -> int:
    try:
        (root / "new").write_bytes(b"new")
    except OSError as error:
        return int(error.errno or 0)
    return 0


def alone(body: str, root: Path, at: int = 0, error: int = 0) -> tuple[int, int, list[str]]:
    """Trace in a process of its own: a tracer owns all children of its process."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(body=body), str(root), str(at), str(error)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status, operations, seen = json.loads(done.stdout)
    return status, operations, seen


def test_operations_are_numbered_and_the_status_is_the_bodys(tmp_path: Path) -> None:
    assert alone("write_and_rename", tmp_path) == (
        7, 3, ["1 open new", "2 write new", "3 rename new"],
    )  # fmt: skip


def test_sqlites_operations_are_seen_as_well(tmp_path: Path) -> None:
    _, operations, seen = alone("insert", tmp_path)
    assert operations == len(seen)
    assert {line.split(maxsplit=1)[1] for line in seen} >= {
        "pwrite64 base", "pwrite64 base-journal", "fdatasync base", "unlink base-journal",
    }  # fmt: skip


@pytest.mark.parametrize(("at", "left"), [(1, []), (2, ["new"]), (3, ["new"]), (4, ["file"])])
def test_a_killed_process_has_done_what_came_before(tmp_path: Path, at: int, left) -> None:
    status, _, _ = alone("write_and_rename", tmp_path, at, tracer.KILL)
    assert status == (7 if at == 4 else -9)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    if at == 2:
        assert (tmp_path / "new").read_bytes() == b""


def test_a_refused_operation_fails_with_its_number_and_changes_nothing(tmp_path: Path) -> None:
    assert alone("refuse_is_seen", tmp_path, 2, errno.ENOSPC)[0] == errno.ENOSPC
    assert (tmp_path / "new").read_bytes() == b""


# ── the power cut ────────────────────────────────────────────────────────────────────────────────


def disk_after(root: Path, *operations: tracer.Operation) -> power.Disk:
    disk = power.Disk(root)
    for operation in operations:
        disk.apply(operation)
    return disk


def op(name: str, path: str, **fields: object) -> tracer.Operation:
    return tracer.Operation(0, name, path, **fields)  # type: ignore[arg-type]


CREATE = op("open", "a", flags=os.O_CREAT | os.O_WRONLY)
WRITE = op("write", "a", data=b"data", offset=0)
SYNC, SYNC_NAMES = op("fsync", "a"), op("fsync", "")
RENAME = op("rename", "a", other="b")


@pytest.mark.parametrize(
    ("operations", "state", "left"),
    [
        ((CREATE, WRITE), "synced", {}),
        ((CREATE, WRITE), "names", {"a": b""}),
        ((CREATE, WRITE), "lengths", {"a": b"\0\0\0\0"}),
        ((CREATE, WRITE), "all", {"a": b"data"}),
        ((CREATE, WRITE, SYNC), "synced", {}),
        ((CREATE, WRITE, SYNC_NAMES), "synced", {"a": b""}),
        ((CREATE, WRITE, SYNC_NAMES), "bytes", {"a": b"data"}),
        ((CREATE, WRITE, SYNC, SYNC_NAMES), "synced", {"a": b"data"}),
        ((CREATE, WRITE, SYNC, SYNC_NAMES, RENAME), "synced", {"a": b"data"}),
        ((CREATE, WRITE, SYNC, SYNC_NAMES, RENAME), "names", {"b": b"data"}),
        ((CREATE, WRITE, SYNC, RENAME, SYNC_NAMES), "synced", {"b": b"data"}),
    ],
)
def test_a_power_cut_leaves_what_was_synced(tmp_path: Path, operations, state, left) -> None:
    assert disk_after(tmp_path, *operations).after_power_cut(state) == left


def test_what_is_below_a_directory_is_lost_with_its_name(tmp_path: Path) -> None:
    disk = disk_after(
        tmp_path, op("mkdir", "d"), op("open", "d/f", flags=os.O_CREAT), op("fsync", "d/f"),
        op("fsync", "d"),
    )  # fmt: skip
    assert disk.after_power_cut("synced") == {}
    disk.apply(op("fsync", ""))
    assert disk.after_power_cut("synced") == {"d": None, "d/f": b""}


def test_a_random_cut_draws_from_what_was_not_synced(tmp_path: Path) -> None:
    disk = disk_after(tmp_path, CREATE, WRITE)
    drawn = [disk.after_power_cut(f"random {seed}") for seed in range(20)]
    assert {} in drawn and {"a": b""} in drawn and {"a": b"data"} in drawn
    assert drawn == [disk.after_power_cut(f"random {seed}") for seed in range(20)]


def test_files_come_back_as_they_were_left(tmp_path: Path) -> None:
    tree: power.Tree = {"d": None, "d/f": b"x", "l": "d/f"}
    power.write(tree, tmp_path / "new")
    assert power.read(tmp_path / "new") == tree
