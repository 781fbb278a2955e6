from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions
from cloud.db.tables import Device
from cloud.devices.compact import compact
from cloud.devices.listing import Wanted, page
from cloud.errors import UserError
from tests.devices_cloud.fleet import NOW, device

REPORTED = {
    "agent_version": "0.10.0",
    "inventory": {"machine": "x"},
    "models": {"digits": {"version": 2, "counter": 3, "variant": "v", "phase": "healthy"}},
}


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    with sessions() as session:
        session.add_all(
            device(
                f"d-{number}",
                profile="n100" if number % 2 else "raspberry-pi-5",
                labels={"site": "a" if number < 4 else "b"},
                online=number == 0,
                reported=REPORTED if number == 1 else {},
            )
            for number in range(6)
        )
        session.flush()
        yield session


def ids(session: Session, offset: int = 0, limit: int = 100, **wanted: object) -> str:
    found = page(session, Wanted(**wanted), NOW, offset=offset, limit=limit)  # type: ignore[arg-type]
    return f"{''.join(item.id[2:] for item in found.items)} of {found.total}"


def test_all_that_is_given_must_hold(session: Session) -> None:
    assert ids(session) == "012345 of 6"
    assert ids(session, search="N1") == "135 of 3"
    assert ids(session, profile="n100", labels=["site=a"]) == "13 of 2"
    assert ids(session, online=False, query='site == "b" or model.digits >= 2') == "145 of 3"
    assert ids(session, query='agent_version > "0.9"') == "1 of 1"


def test_a_page_is_cut_and_the_whole_is_counted_also_beyond_its_end(session: Session) -> None:
    assert ids(session, 2, 2) == "23 of 6"
    assert ids(session, 1, 2, profile="n100") == "35 of 3"
    assert ids(session, 3, 2, profile="n100") == " of 3"
    assert ids(session, 0, 2, profile="none") == " of 0"


def test_a_device_is_shown_with_what_it_reports(session: Session) -> None:
    (item,) = page(session, Wanted(query="has model.digits"), NOW, offset=0, limit=1).items
    assert (item.agent_version, item.models) == ("0.10.0", REPORTED["models"])


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (Wanted(query="site = 3"), "query, column 6: found '=', expected '=='"),
        (Wanted(query='group("x")'), "query: there is no group 'x'; see 'skerry groups list'"),
        (Wanted(labels=["site"]), "label 'site' is not KEY=VALUE"),
        (Wanted(labels=['a"b=c']), "label 'a\"b=c' is not KEY=VALUE"),
        (Wanted(search="\x00"), "a filter holds a character that no device can have"),
    ],
)
def test_a_wrong_filter_gets_one_line(session: Session, wanted: Wanted, line: str) -> None:
    with pytest.raises(UserError) as found:
        page(session, wanted, NOW, offset=0, limit=1)
    assert str(found.value) == line


def test_facts_follow_the_documents_however_they_are_written(sessions: Sessions) -> None:
    row = {key: value for key, value in vars(device("bulk")).items() if key[0] != "_"}
    with sessions.begin() as session:
        session.execute(insert(Device), [{**row, "reported": REPORTED}])
        session.add(device("one", inventory={"cores": 4}))
    with sessions.begin() as session:
        assert session.get_one(Device, "bulk").facts == compact({}, REPORTED)
        one = session.get_one(Device, "one")
        assert one.facts == {"cores": 4}
        one.reported = REPORTED
        one.labels = {"site": "a"}
    with sessions.begin() as session:
        assert session.get_one(Device, "one").facts == compact({"cores": 4}, REPORTED)
