"""Messages leave at least once, in order, and none holds up another's."""

from __future__ import annotations

from sqlalchemy import func, select

from cloud.db.tables import Outbox
from cloud.orchestrator.outbox import KEPT_S, PURGE_EVERY_S


def command(plane, device: str, payload: bytes, *, expires_at: float | None = None) -> None:
    with plane.sessions.begin() as session:
        session.add(
            Outbox(
                topic=f"skerry/v1/d/{device}/command",
                payload=payload,
                retain=False,
                created_at=plane.now,
                published_at=None,
                expires_at=expires_at,
            )
        )


def sent(plane) -> list[bytes]:
    return [payload for _, payload, _ in plane.publisher.sent]


def test_a_message_that_the_broker_refuses_holds_up_its_own_topic_alone(plane) -> None:
    plane.publisher.refused = {"bad"}
    command(plane, "bad", b"1")
    command(plane, "good", b"2")
    plane.turn()
    command(plane, "bad", b"3")
    command(plane, "good", b"4")
    plane.turn(0.1)
    assert sent(plane) == [b"2", b"4"]
    plane.publisher.refused = set()
    plane.turn(0.1)
    assert sent(plane) == [b"2", b"4"]
    plane.turn(2)
    plane.turn(2)
    assert sent(plane) == [b"2", b"4", b"1", b"3"]


def test_a_refused_message_is_tried_less_and_less_often(plane) -> None:
    plane.publisher.refused = {"bad"}
    command(plane, "bad", b"1")
    for _ in range(30):
        plane.turn(1)
    with plane.sessions() as session:
        [row] = session.scalars(select(Outbox))
    assert 4 <= row.attempts <= 6


def test_a_newer_twin_does_not_wait_for_one_that_was_refused(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    plane.publisher.refused = {"d0"}
    rollout = plane.start(1)
    for _ in range(6):
        plane.turn()
    plane.publisher.refused = set()
    plane.command(rollout, "cancel")
    plane.turn(0.1)
    assert plane.publisher.twin("d0").models == {}
    with plane.sessions() as session:
        assert plane.waiting(session) == 0


def test_what_has_expired_does_not_leave(plane) -> None:
    command(plane, "d0", b"late", expires_at=plane.now + 1)
    command(plane, "d0", b"in time", expires_at=plane.now + 100)
    plane.turn(2)
    assert sent(plane) == [b"in time"]


def test_what_left_is_deleted_after_a_while(plane) -> None:
    command(plane, "d0", b"1")
    plane.turn()
    plane.turn(KEPT_S + PURGE_EVERY_S)
    with plane.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0


def test_one_publisher_sends_at_a_time(plane) -> None:
    plane.turn()
    second = plane.new_publisher("second")
    command(plane, "d0", b"1")
    assert second.turn(plane.publisher, plane.now) is None
    assert sent(plane) == []
    plane.now += 11
    assert second.turn(plane.publisher, plane.now) == 1
    second.close()
    assert plane.outbox.turn(plane.publisher, plane.now) == 0
