from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, Rollout
from cloud.devices import groups
from cloud.errors import Conflict, NotFound, UserError
from fleet.client.registry_schemas import DeviceGroupChange, DeviceGroupIn
from tests.devices_cloud.fleet import NOW, device


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    with sessions() as session:
        session.add_all(
            device(f"d-{number}", labels={"site": "a" if number < 2 else "b"})
            for number in range(4)
        )
        session.flush()
        yield session


def make(session: Session, name: str, query: str = "", devices: tuple[str, ...] = ()) -> None:
    request = DeviceGroupIn(name=name, query=query, devices=list(devices))
    groups.create(session, request, "token:op", NOW)


def test_members_come_and_go_by_name(session: Session) -> None:
    make(session, "lab", devices=("d-0", "d-3"))
    groups.change_members(session, "lab", ["d-1", "d-3"], ["d-0", "d-2"], "token:op", NOW)
    assert groups.resolve(session, "lab", NOW) == ["d-1", "d-3"]
    changed = session.scalars(
        select(AuditEntry.detail).where(AuditEntry.action == "group.members_changed")
    ).all()
    assert changed[-1] == {"added": ["d-1"], "removed": ["d-0"]}


def test_a_query_has_whoever_matches_now_and_may_ask_for_groups(session: Session) -> None:
    make(session, "lab", devices=("d-0", "d-3"))
    make(session, "site-a", 'site == "a"')
    make(session, "rest", 'not group("lab") and not group("site-a")')
    assert groups.resolve(session, "rest", NOW) == ["d-2"]
    session.add(device("d-4"))
    session.flush()
    assert groups.resolve(session, "rest", NOW) == ["d-2", "d-4"]


def test_what_cannot_be_is_refused_in_one_line(session: Session) -> None:
    make(session, "lab", devices=("d-0",))
    make(session, "all", "has id")
    with pytest.raises(Conflict, match="group 'lab' exists already"):
        make(session, "lab")
    with pytest.raises(UserError, match="members or a query, not both"):
        make(session, "x", "online", ("d-0",))
    with pytest.raises(UserError, match="query, column 7: found '='"):
        make(session, "x", "online=")
    with pytest.raises(UserError, match="there is no group 'x'"):
        make(session, "x", 'group("x")')
    with pytest.raises(NotFound, match="no device 'd-8' and 1 more; nothing was changed"):
        groups.change_members(session, "lab", ["d-1", "d-8", "d-9"], [], "token:op", NOW)
    with pytest.raises(Conflict, match="members cannot be named"):
        groups.change_members(session, "all", ["d-1"], [], "token:op", NOW)
    with pytest.raises(NotFound, match="no group 'none'"):
        groups.remove(session, "none", "token:op", NOW)


def test_groups_of_groups_are_bounded(session: Session) -> None:
    make(session, "g0", "online")
    with pytest.raises(UserError, match="8 deep at most"):
        for number in range(1, 20):
            make(session, f"g{number}", f'group("g{number - 1}")')
    assert groups.resolve(session, "g6", NOW) == []


def test_a_group_in_use_says_by_whom(session: Session) -> None:
    make(session, "lab", devices=("d-0",))
    make(session, "rest", 'not group("lab")')
    session.add(
        Rollout(
            id="digits-1-abc",
            model="digits",
            version=1,
            state="RUNNING",
            machine={},
            plan={"query": "", "waves": [{"count": None, "query": 'group("lab") and online'}]},
            created_by="x",
            created_at=NOW,
            updated_at=NOW,
        )
    )
    session.flush()
    with pytest.raises(Conflict, match="'lab' is used by group rest, rollout digits-1-abc"):
        groups.remove(session, "lab", "token:op", NOW)
    groups.remove(session, "rest", "token:op", NOW)
    session.get_one(Rollout, "digits-1-abc").state = "COMPLETED"
    session.flush()
    groups.remove(session, "lab", "token:op", NOW)
    with pytest.raises(NotFound):
        groups.resolve(session, "lab", NOW)


def change(session: Session, name: str, query: str | None = None, text: str | None = None) -> None:
    request = DeviceGroupChange(query=query, description=text)
    groups.change(session, name, request, "token:op", NOW + 1)


def test_a_group_is_given_another_query(session: Session) -> None:
    make(session, "site", 'site == "a"')
    make(session, "rest", 'not group("site")')
    change(session, "site", 'site == "b"')
    assert groups.resolve(session, "site", NOW) == ["d-2", "d-3"]
    assert groups.resolve(session, "rest", NOW) == ["d-0", "d-1"]
    assert groups.find(session, "site").updated_at == NOW + 1
    change(session, "rest", text="all others")
    change(session, "rest", text="all others")  # nothing new
    noted = session.scalars(
        select(AuditEntry.detail).where(AuditEntry.action == "group.changed")
    ).all()
    assert noted == [
        {
            "before": {"query": 'site == "a"', "description": ""},
            "after": {"query": 'site == "b"', "description": ""},
        },
        {
            "before": {"query": 'not group("site")', "description": ""},
            "after": {"query": 'not group("site")', "description": "all others"},
        },
    ]


def test_a_change_that_cannot_be_is_refused(session: Session) -> None:
    make(session, "lab", devices=("d-0",))
    make(session, "low", "online")
    make(session, "high", 'group("low") or group("lab")')
    with pytest.raises(NotFound, match="no group 'none'"):
        change(session, "none", "online")
    with pytest.raises(Conflict, match="group 'lab' has members"):
        change(session, "lab", "online")
    with pytest.raises(UserError, match="cannot be empty"):
        change(session, "low", "")
    with pytest.raises(UserError, match="query, column 7: found '='"):
        change(session, "low", "online=")
    for query in ('not group("low")', 'group("high")'):
        with pytest.raises(Conflict, match="group 'low' would be defined by itself"):
            change(session, "low", query)
    assert groups.find(session, "low").query == "online"


def test_a_change_makes_no_group_above_too_deep(session: Session) -> None:
    make(session, "g0", "online")
    make(session, "h0", "online")
    for number in range(1, 5):
        make(session, f"g{number}", f'group("g{number - 1}")')
        make(session, f"h{number}", f'group("h{number - 1}")')
    with pytest.raises(UserError, match="too many groups in a row"):
        change(session, "g0", 'group("h4")')
    session.rollback()
