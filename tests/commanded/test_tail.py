"""The last lines of the log: bounded, in order, and there after a restart."""

from __future__ import annotations

import logging

import pytest

from edge_agent.commanded.tail import MAX_LINE_BYTES, LogTail


@pytest.fixture
def logged(tmp_path):
    """A logger of its own with a tail on it."""
    tail = LogTail(tmp_path / "log.tail", kept_bytes=20_000)
    log = logging.getLogger("skerry.tail_test")
    log.addHandler(tail)
    yield log, tail
    log.removeHandler(tail)


def test_the_last_lines_come_oldest_first(logged):
    log, tail = logged
    for number in range(5):
        log.info("thing.happened number=%d", number)
    text = tail.last(2, 10_000).decode()
    assert [line.rpartition(" ")[2] for line in text.splitlines()] == ["number=3", "number=4"]


def test_memory_and_answers_are_bounded_whatever_is_logged(logged):
    log, tail = logged
    log.info("thing.happened what=%s", "x" * 100_000)
    assert len(tail.last(1, 10_000)) <= MAX_LINE_BYTES + 1
    for number in range(2000):
        log.info("thing.happened number=%d", number)
    assert len(tail.last(100_000, 1 << 20)) <= 20_000
    text = tail.last(100_000, 300)
    assert len(text) <= 300
    assert text.endswith(b"number=1999\n")


def test_a_value_cannot_begin_a_line_of_its_own(logged):
    log, tail = logged
    log.info("thing.happened name=%s", "a\nskerry.forged")
    assert tail.last(10, 10_000).count(b"\n") == 1


def test_what_an_orderly_end_saved_is_there_after_the_next_start(logged, tmp_path):
    log, tail = logged
    log.info("thing.happened number=%d", 1)
    tail.save()
    assert b"number=1" in LogTail(tmp_path / "log.tail").last(1, 1000)


def test_a_tail_that_cannot_be_saved_costs_nothing_but_itself(tmp_path, caplog):
    LogTail(tmp_path / "missing" / "log.tail").save()
    assert "log.not_saved" in caplog.text
