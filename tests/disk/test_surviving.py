"""Rows that can be read while a real disk refuses, at every operation of a change to them."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from pathlib import Path

import pytest

from edge_agent.disk.database import open_durable
from edge_agent.disk.surviving import Surviving
from tests.crash import tracer

TABLE = "CREATE TABLE IF NOT EXISTS t(x INTEGER)"
needs_tracer = pytest.mark.skipif(bool(tracer.supported()), reason=tracer.supported() or "")


def opened(path: Path) -> Surviving:
    def prepare(database: sqlite3.Connection) -> None:
        database.execute(TABLE)

    return Surviving(open_durable(path, prepare))


def rows(database: Surviving) -> list[int]:
    return [row[0] for row in database.execute("SELECT x FROM t ORDER BY x").fetchall()]


def add(database: Surviving, value: int) -> None:
    with database.transaction():
        database.execute("INSERT INTO t VALUES (?)", (value,))


def read_after_refusals(directory: Path, once: int, then: int, answer: Path) -> bool:
    """Add two rows on a disk that refuses operation `once`, and from `then` on all; then read.

    Returns:
        Whether there were as many operations as `then`.
    """
    seen = 0
    changing = directory / "changing"

    def decide(operation: tracer.Operation) -> int:
        nonlocal seen
        if not changing.exists():
            return 0
        seen += 1
        return errno.ENOSPC if operation.takes_room and (seen == once or seen >= then) else 0

    def body() -> int:
        database = opened(directory / "t.sqlite")
        add(database, 1)
        changing.touch()
        for value in (2, 3):
            with contextlib.suppress(sqlite3.OperationalError):
                add(database, value)
        answer.write_text(str(rows(database)))
        return 0

    tracer.run(body, directory, decide)
    return seen >= then


@needs_tracer
@pytest.mark.parametrize("once", [0, *range(12, 18)])
def test_what_was_committed_is_read_wherever_the_disk_refuses_a_change(
    tmp_path: Path, once: int
) -> None:
    answers = set()
    for then in range(max(2, once + 1), 60):
        directory = tmp_path / str(then)
        directory.mkdir()
        answer = tmp_path / f"{then}.txt"
        if not read_after_refusals(directory, once, then, answer):
            break
        answers.add(answer.read_text())
        # the disk has room again: what it holds is what was told
        database = opened(directory / "t.sqlite")
        assert str(rows(database)) == answer.read_text()
        database.close()
    assert answers


def test_inside_a_transaction_its_own_changes_are_read(tmp_path: Path) -> None:
    database = opened(tmp_path / "t.sqlite")
    with database.transaction():
        database.execute("INSERT INTO t VALUES (7)")
        assert rows(database) == [7]
    assert rows(database) == [7]
    with pytest.raises(ZeroDivisionError), database.transaction():
        database.execute("INSERT INTO t VALUES (8)")
        raise ZeroDivisionError
    assert rows(database) == [7]
    database.close()


def test_a_question_that_is_wrong_is_refused_and_not_asked_of_the_memory(tmp_path: Path) -> None:
    database = opened(tmp_path / "t.sqlite")
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        database.execute("SELECT y FROM t")
    database.close()
