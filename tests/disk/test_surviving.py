"""Rows that can be read while a real disk refuses, at every operation of a change to them."""

from __future__ import annotations

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


def read_after_a_refusal(directory: Path, at: int, answer: Path) -> bool:
    """Add a row on a disk that refuses from operation `at` of that on, then read.

    Returns:
        Whether anything was refused.
    """
    refused: list[int] = []
    changing = directory / "changing"

    def decide(operation: tracer.Operation) -> int:
        if not changing.exists():
            return 0
        refused.append(operation.number)
        return errno.ENOSPC if len(refused) >= at and operation.takes_room else 0

    def body() -> int:
        database = opened(directory / "t.sqlite")
        add(database, 1)
        changing.touch()
        try:
            add(database, 2)
        except sqlite3.OperationalError:
            said = "refused"
        else:
            said = "done"
        answer.write_text(f"{said} {rows(database)}")
        return 0

    tracer.run(body, directory, decide)
    return len(refused) >= at


@needs_tracer
def test_what_was_committed_is_read_wherever_the_disk_refuses_a_change(tmp_path: Path) -> None:
    answers = set()
    for at in range(2, 60):
        directory = tmp_path / str(at)
        directory.mkdir()
        answer = tmp_path / f"{at}.txt"
        if not read_after_a_refusal(directory, at, answer):
            break
        answers.add(answer.read_text())
        # the disk has room again: what it holds is what was told
        database = opened(directory / "t.sqlite")
        assert f" {rows(database)}" in answer.read_text()
        database.close()
    # the last sync of all is refused after the change is made
    assert answers == {"refused [1]", "refused [1, 2]"}


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
