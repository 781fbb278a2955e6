"""The journal: order, acknowledgement, bounds, and what survives."""

from __future__ import annotations

import pytest

from edge_agent.link.errors import OutboxBroken, OutboxFull
from edge_agent.link.outbox import Outbox
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.errors import MessageTooLarge
from edge_agent.wire.messages import Ack, UplinkHeader


def test_rows_come_in_order_and_leave_by_acknowledgement_only(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db", clock=lambda: 5.0)
    seqs = [outbox.append("report", bytes([n])) for n in range(3)]
    rows = outbox.pending()
    assert [row.seq for row in rows] == seqs == sorted(seqs)
    header, payload = unpack_frame(rows[1].frame(), UplinkHeader)
    assert (header.seq, header.stream, header.created_at) == (seqs[1], rows[1].stream, 5.0)
    assert bytes(payload) == b"\x01"
    assert outbox.acknowledge(Ack(stream=rows[0].stream, seqs=(seqs[0], seqs[2]))) == 2
    assert [row.payload for row in outbox.pending()] == [b"\x01"]


def test_an_acknowledgement_of_another_stream_removes_nothing(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db")
    seq = outbox.append("report", b"x")
    assert outbox.acknowledge(Ack(stream="another", seqs=(seq,))) == 0
    assert outbox.count() == 1


def test_rows_survive_a_reopening_and_new_ones_get_another_stream(tmp_path):
    first = Outbox(tmp_path / "outbox.db")
    first.append("sample", b"old")
    first.close()
    second = Outbox(tmp_path / "outbox.db")
    second.append("sample", b"new")
    old, new = second.pending()
    assert (old.payload, new.payload) == (b"old", b"new")
    assert old.stream != new.stream
    assert second.used_bytes == 6


def test_samples_make_room_for_reports_oldest_first(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=300)
    for n in range(3):
        outbox.append("sample", bytes([n]) * 100)
    outbox.append("report", b"r" * 100)
    outbox.append("metrics", b"m" * 50)
    kinds = [(row.kind, row.payload[:1]) for row in outbox.pending()]
    assert kinds == [("sample", b"\x02"), ("report", b"r"), ("metrics", b"m")]
    assert outbox.dropped == {"sample": 2}
    assert outbox.used_bytes <= 300


def test_a_sample_never_pushes_out_what_is_worth_more(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=100)
    outbox.append("metrics", b"m" * 90)
    with pytest.raises(OutboxFull):
        outbox.append("sample", b"s" * 50)
    assert [row.kind for row in outbox.pending()] == ["metrics"]


def test_reports_are_kept_even_above_the_bound(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=100)
    for _ in range(5):
        outbox.append("report", b"r" * 60)
    assert outbox.count() == 5


def test_what_can_never_be_sent_is_refused(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db")
    with pytest.raises(MessageTooLarge):
        outbox.append("sample", b"x" * (128 * 1024))


def test_a_file_that_is_no_journal_is_an_error(tmp_path):
    path = tmp_path / "outbox.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OutboxBroken):
        Outbox(path)


def test_corrections_fill_the_journal_and_no_more_than_that(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=100)
    outbox.append("sample", b"s" * 60)
    outbox.append("correction", b"c" * 60)
    with pytest.raises(OutboxFull):
        outbox.append("correction", b"c" * 60)
    outbox.append("report", b"r" * 60)
    assert [row.kind for row in outbox.pending()] == ["correction", "report"]


def test_a_journal_that_cannot_be_read_says_so(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.close()
    for read in (outbox.pending, outbox.count):
        with pytest.raises(OutboxBroken):
            read()


def test_what_is_appended_again_under_its_name_is_there_once_even_when_it_was_delivered(tmp_path):
    outbox = Outbox(tmp_path / "outbox.db")
    seq = outbox.append("report", b"failed", once="digits")
    outbox.acknowledge(Ack(stream=outbox.stream, seqs=(seq,)))
    outbox.close()
    outbox = Outbox(tmp_path / "outbox.db")
    assert outbox.append("report", b"failed", once="digits") == 0
    assert outbox.count() == 0 and outbox.used_bytes == 0
    assert outbox.append("report", b"failed", once="letters") == 1
    assert outbox.append("report", b"again", once="digits") == 2
    assert outbox.append("report", b"failed", once="digits") == 3, "another one came between"
    outbox.close()
