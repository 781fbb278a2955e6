from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, Device
from cloud.devices.history import history_of
from cloud.devices.labels import import_sheet, label
from cloud.errors import UserError
from fleet.client.registry_schemas import LabelsIn
from tests.devices_cloud.fleet import NOW, device


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    with sessions() as session:
        session.add_all(device(f"d-{n}", labels={"site": "a", "n": str(n)}) for n in range(3))
        session.flush()
        yield session


def labels(session: Session) -> dict[str, Any]:
    return {row[0]: row[1] for row in session.execute(select(Device.id, Device.labels))}


def test_labels_are_set_and_removed_on_all_that_match(session: Session) -> None:
    request = LabelsIn(query='n in ("0", "1")', set={"site": "b"}, remove=["n"])
    dry = label(session, request.model_copy(update={"dry_run": True}), "token:op", NOW)
    assert (dry.matched, dry.changed) == (2, 2)
    assert labels(session)["d-0"] == {"site": "a", "n": "0"}
    done = label(session, request, "token:op", NOW)
    assert (done.matched, done.changed) == (2, 2)
    assert labels(session) == {
        "d-0": {"site": "b"}, "d-1": {"site": "b"}, "d-2": {"site": "a", "n": "2"}
    }  # fmt: skip
    assert history_of(session, "d-0", limit=9)[0].detail == {"n": None, "site": "b"}
    entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "device.labelled")).one()
    assert (entry.subject, entry.detail["set"]) == ("2 devices", {"site": "b"})
    again = label(session, LabelsIn(query='site == "b"', set={"site": "b"}), "token:op", NOW)
    assert (again.matched, again.changed) == (2, 0)


def test_a_label_cannot_come_and_go_at_once_nor_be_one_too_many(session: Session) -> None:
    with pytest.raises(UserError, match="'x' is both set and removed"):
        label(session, LabelsIn(query="has id", set={"x": "1"}, remove=["x"]), "op", NOW)
    many = LabelsIn(query="has id", set={f"k{n}": "" for n in range(31)})
    with pytest.raises(UserError, match="device 'd-0' would have more than 32 labels"):
        label(session, many, "op", NOW)


def test_a_table_is_taken_over_whole(session: Session) -> None:
    table = b"id,profile,label.site,label.rack\nd-1,whatever,c,7\nd-2,,,\n"
    done = import_sheet(session, table, "csv", "token:op", NOW, dry_run=False)
    assert (done.rows, done.changed, done.problems) == (2, 2, [])
    assert labels(session) == {
        "d-0": {"site": "a", "n": "0"},
        "d-1": {"site": "c", "n": "1", "rack": "7"},
        "d-2": {"n": "2"},
    }
    whole = b'[\n{"id": "d-1", "labels": {"new": "x"}}\n]'
    assert import_sheet(session, whole, "json", "token:op", NOW, dry_run=False).changed == 1
    assert labels(session)["d-1"] == {"new": "x"}


def test_with_one_wrong_line_nothing_is_written(session: Session) -> None:
    before = labels(session)
    table = b'id,label.site\nd-1,c\nd-9,c\n"d-2\n",c\nd-1,d\n../x,c\nd-2\n'
    done = import_sheet(session, table, "csv", "token:op", NOW, dry_run=False)
    assert [(each.line, each.problem) for each in done.problems] == [
        (3, "no device 'd-9'; enrol it first"),
        (6, "device 'd-1' stands in line 2 too"),
        (7, "'../x' is no device's id"),
        (8, "1 cells, but 2 columns"),
    ]
    assert (done.wrong, done.changed, labels(session)) == (4, 0, before)


@pytest.mark.slow
def test_ten_thousand_rows_are_one_import(session: Session) -> None:
    session.add_all(device(f"many-{n}") for n in range(10_000))
    session.flush()
    table = "id,label.site\n" + "".join(f"many-{n},s{n % 7}\n" for n in range(10_000))
    done = import_sheet(session, table.encode(), "csv", "token:op", NOW, dry_run=False)
    assert (done.rows, done.changed, done.wrong) == (10_000, 10_000, 0)
    assert session.scalar(select(Device.labels).where(Device.id == "many-8")) == {"site": "s1"}
