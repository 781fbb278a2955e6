"""Rows read by their number are read once, whatever the order of the commits."""

from __future__ import annotations

import threading

from cloud.db import order
from cloud.db.engine import Sessions
from cloud.db.tables import AssignmentEvent


def test_a_reader_waits_for_the_writer_of_a_lower_number(
    sessions: Sessions,
) -> None:
    seen: list[int] = []

    def read() -> None:
        with sessions.begin() as session:
            seen.append(order.settled(session, AssignmentEvent.id))

    with sessions.begin() as slow:
        order.share(slow)
        slow.add(_event())
        slow.flush()
        if slow.get_bind().dialect.name == "postgresql":
            with sessions.begin() as quick:  # writers do not wait for each other
                order.share(quick)
                quick.add(_event())
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(0.2)
        assert seen == []
    reader.join(10)
    with sessions() as session:
        assert seen == [session.query(AssignmentEvent).count()]


def test_without_rows_nothing_is_settled(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert order.settled(session, AssignmentEvent.id) == 0


def _event() -> AssignmentEvent:
    return AssignmentEvent(device="d", rollout=None, report={}, at=0.0)
