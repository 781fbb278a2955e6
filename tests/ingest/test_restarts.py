"""From the journal of a device to the tables, over a broker and an ingest that come and go."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select

from cloud.db.tables import AssignmentEvent, Inbox
from cloud.ingest import Ingest
from edge_agent.link.mqtt import Link, Retry
from edge_agent.link.outbox import Outbox
from edge_agent.link.uplink import Uplink
from edge_agent.wire.messages import UpdateReport


def until(condition, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def report(number: int) -> bytes:
    return UpdateReport(
        model="digits", target="t", version=1, counter=1, generation=number, phase="queued"
    ).encode()


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_applied_twice_over_restarts(broker, sessions, blobs, tmp_path):
    files = broker.device("cam-1")
    outbox = Outbox(tmp_path / "outbox.db")
    link = Link(
        host=broker.host, port=broker.port, device_id="cam-1",
        ca=files.ca, certificate=files.certificate, key=files.key, retry=Retry(0.05, 0.3),
    )  # fmt: skip
    uplink = Uplink(outbox, link, "cam-1", resend_after_s=0.5)

    def start_ingest():
        connection = broker.connection()
        Ingest(sessions, blobs, connection).start()
        connection.start()
        return connection

    number = 0

    def write(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            outbox.append("report", report(number))

    ingest = start_ingest()
    try:
        uplink.start()
        link.start()
        write(20)
        until(lambda: outbox.count() == 0)
        broker.stop()
        write(30)
        assert outbox.count() == 30
        broker.start()
        write(10)
        ingest.stop()  # in the middle of the backlog, perhaps between commit and acknowledgement
        ingest = start_ingest()
        broker.restart()
        write(10)
        until(lambda: outbox.count() == 0)
    finally:
        uplink.stop()
        link.stop()
        ingest.stop()
    with sessions() as session:
        events = session.scalars(select(AssignmentEvent.report).order_by(AssignmentEvent.id)).all()
        inbox = session.scalars(select(Inbox.seq)).all()
    assert sorted(event["generation"] for event in events) == list(range(1, 71))
    assert len(inbox) == 70
