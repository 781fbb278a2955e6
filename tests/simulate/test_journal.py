"""The journal of a simulated device keeps the rules of the real one."""

from __future__ import annotations

from edge_agent.wire.base import unpack_frame
from edge_agent.wire.messages import Ack, UplinkHeader
from fleet.simulate.journal import MAX_ROWS, WINDOW_ROWS, Journal, frame


def seqs(journal: Journal, now: float) -> list[int]:
    return [row.seq for row in journal.due(now)]


def filled(rows: int) -> Journal:
    journal = Journal("s", resend_s=10)
    for _ in range(rows):
        journal.append("report", b"{}")
    return journal


def test_rows_go_in_order_within_the_window_and_the_rest_after_acknowledgements() -> None:
    journal = filled(WINDOW_ROWS + 2)
    assert seqs(journal, 1.0) == list(range(1, WINDOW_ROWS + 1))
    assert seqs(journal, 2.0) == []
    assert journal.acknowledge(Ack(stream="s", seqs=(1, 1, 3))) == 2
    assert seqs(journal, 3.0) == [WINDOW_ROWS + 1, WINDOW_ROWS + 2]


def test_what_is_not_acknowledged_is_sent_again_the_oldest_first_and_later_each_time() -> None:
    journal = filled(3)
    assert seqs(journal, 1.0) == [1, 2, 3]
    assert journal.next_due(1.0) == 11.0
    assert seqs(journal, 10.9) == []
    assert seqs(journal, 11.0) == [1]
    assert journal.next_due(11.0) == 31.0
    assert journal.resent == 1
    journal.acknowledge(Ack(stream="s", seqs=(1,)))
    assert journal.next_due(12.0) == 12.0
    assert seqs(journal, 12.0) == [2, 3]
    assert journal.resent == 3


def test_a_new_line_sends_everything_again() -> None:
    journal = filled(2)
    seqs(journal, 1.0)
    journal.reconnected()
    assert journal.next_due(1.5) == 1.5
    assert seqs(journal, 1.5) == [1, 2]
    assert journal.resent == 2


def test_an_acknowledgement_of_another_stream_removes_nothing() -> None:
    journal = filled(1)
    assert journal.acknowledge(Ack(stream="other", seqs=(1,))) == 0
    assert len(journal) == 1


def test_a_new_start_draws_new_names_and_keeps_what_waits() -> None:
    journal = filled(2)
    journal.reopen("t")
    journal.append("report", b"{}")
    assert [(row.stream, row.seq) for row in journal.due(1.0)] == [("s", 1), ("s", 2), ("t", 1)]
    assert journal.written == {"s": 2, "t": 1}


def test_a_full_journal_takes_reports_alone() -> None:
    journal = filled(MAX_ROWS)
    assert not journal.append("metrics", b"{}")
    assert journal.append("report", b"{}")
    assert journal.written == {"s": MAX_ROWS + 1}


def test_a_row_goes_out_as_an_uplink_frame() -> None:
    [row] = filled(1).due(1.0)
    header, payload = unpack_frame(frame(row, 5.0), UplinkHeader)
    assert (header.stream, header.seq, header.created_at, bytes(payload)) == ("s", 1, 5.0, b"{}")
