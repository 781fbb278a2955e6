"""Rows in flight come again one by one while nobody answers, and fast once somebody does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from edge_agent.wire.resending import MAX_RESEND_S, Resending


@dataclass(eq=False)
class Sent:
    seq: int
    at: float = 0.0
    times: int = 1


class Line:
    """Rows in flight, and what was sent again."""

    def __init__(self, rows: int) -> None:
        self.rules: Resending[Sent] = Resending(10.0)
        self.rows = {seq: Sent(seq) for seq in range(1, rows + 1)}

    def late(self, now: float) -> list[int]:
        found = self.rules.late(self.rows.values(), now)
        for row in found:
            row.at, row.times = now, row.times + 1
        return [row.seq for row in found]

    def acknowledge(self, *seqs: int) -> None:
        for seq in seqs:
            self.rules.acknowledged(self.rows.pop(seq))

    def due(self, now: float) -> float | None:
        return self.rules.due_at(self.rows.values(), now)


def test_the_oldest_alone_comes_again_later_each_time() -> None:
    line = Line(5)
    assert line.due(0.0) == 10.0
    assert [line.late(now) for now in (0.0, 9.9, 10.0, 10.1, 29.9, 30.0, 69.9, 70.0)] == [
        [], [], [1], [], [], [1], [], [1],
    ]  # fmt: skip


def test_the_pause_has_a_bound() -> None:
    line = Line(1)
    line.rows[1].times = 50
    assert line.due(0.0) == MAX_RESEND_S


def test_while_acknowledgements_come_in_order_nothing_comes_again() -> None:
    line = Line(5)
    for seq in range(1, 6):
        now = 9.0 * seq
        assert line.late(now) == []
        line.acknowledge(seq)
        assert line.late(now) == []
    assert line.due(50.0) is None


def test_a_row_that_others_overtake_comes_again() -> None:
    line = Line(8)
    line.due(0.0)
    for seq in range(2, 9):
        line.acknowledge(seq)
        line.due(float(seq))
    assert line.late(9.9) == []
    assert line.late(10.0) == [1]


def test_what_was_lost_follows_faster_and_faster_once_somebody_answers() -> None:
    line = Line(12)
    line.due(0.0)
    assert line.late(10.0) == [1]
    line.rows[13] = Sent(13, at=10.5)  # new, and not lost
    waves = []
    now, seqs = 11.0, [1]
    while seqs:
        line.acknowledge(*seqs)
        if line.rows:
            assert line.due(now) == (now if len(line.rows) > 1 else now + 10.0)
        seqs = line.late(now)
        waves.append(seqs)
        now += 0.1
    assert waves == [[2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [12], []]
    assert list(line.rows) == [13]


def test_a_late_answer_brings_few_rows_twice() -> None:
    """The control plane was only slow: with the oldest row it acknowledges all that followed."""
    line = Line(64)
    line.due(0.0)
    assert line.late(10.0) == [1]
    line.acknowledge(*range(1, 65))
    assert line.late(10.5) == []


@pytest.mark.parametrize("rows", [1, 3])
def test_a_new_line_starts_over(rows: int) -> None:
    line = Line(rows)
    line.due(0.0)
    line.late(10.0)
    line.acknowledge(1)
    line.rules.restart()
    assert line.late(10.1) == []


def test_while_nobody_subscribes_the_oldest_comes_soon_and_then_rarer() -> None:
    line = Line(3)
    line.due(0.0)
    for _ in range(3):
        line.rules.unheard(0.5)  # of each row; the first counts
    assert line.due(0.5) == 2.5
    assert line.late(2.5) == [1]
    assert line.due(2.5) == 22.5  # if nobody says anything
    line.rules.unheard(2.6)
    assert line.late(6.6) == [1]
    line.rules.unheard(6.6)
    assert line.late(14.6) == [1]
    line.rules.unheard(14.6)
    assert line.due(14.6) == 24.6  # no rarer than the first time-out
    line.acknowledge(1)
    assert line.late(15.0) == [2, 3]
    line.rules.unheard(15.0)
    assert line.due(15.0) == 17.0
