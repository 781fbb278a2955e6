from __future__ import annotations

import threading

import pytest
from sqlalchemy import text

from cloud.db.engine import Sessions
from cloud.registry import AuditBroken, audit


def test_a_chain_of_entries_verifies(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for number in range(5):
            audit.append(session, "admin", "thing.done", "thing:1", {"number": number, "x": 0.1})
    with sessions.begin() as session:
        assert audit.verify(session) == 5


def test_an_empty_audit_verifies(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert audit.verify(session) == 0
        assert audit.head(session) == audit.GENESIS


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE id = 2", 2),
        ("UPDATE audit SET detail = '{\"number\": 9}' WHERE id = 1", 1),
        ("DELETE FROM audit WHERE id = 2", 3),
        ("UPDATE audit SET at = at + 1 WHERE id = 3", 3),
    ],
)
def test_a_changed_or_removed_entry_breaks_the_chain(
    sessions: Sessions, statement: str, entry: int
) -> None:
    with sessions.begin() as session:
        for number in range(4):
            audit.append(session, "admin", "thing.done", "thing:1", {"number": number})
    with sessions.begin() as session:
        session.execute(text(statement))
    with sessions.begin() as session, pytest.raises(AuditBroken) as broken:
        audit.verify(session)
    assert broken.value.entry == entry


def test_writers_at_the_same_time_extend_one_chain(sessions: Sessions) -> None:
    failures: list[Exception] = []

    def write(actor: str) -> None:
        try:
            for _ in range(10):
                with sessions.begin() as session:
                    audit.append(session, actor, "thing.done", "thing:1")
                    audit.append(session, actor, "thing.done", "thing:2")
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(f"writer-{n}",)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    with sessions.begin() as session:
        assert audit.verify(session) == 80


def test_an_entry_goes_with_its_transaction(sessions: Sessions) -> None:
    with pytest.raises(RuntimeError), sessions.begin() as session:
        audit.append(session, "admin", "thing.done", "thing:1")
        raise RuntimeError("the caller fails")
    with sessions.begin() as session:
        assert audit.verify(session) == 0


def test_values_that_json_cannot_hold_are_refused(sessions: Sessions) -> None:
    with sessions.begin() as session, pytest.raises(ValueError, match="nan"):
        audit.append(session, "admin", "thing.done", "thing:1", {"x": float("nan")})
