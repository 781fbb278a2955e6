"""Queries, groups, labels and tables over the real API."""

from __future__ import annotations

import pytest

from fleet.client.client import ApiError, Client
from fleet.client.registry_schemas import DeviceGroupChange, DeviceGroupIn, LabelsIn, MembersIn
from tests.api.conftest import Plane
from tests.devices_cloud.fleet import device


@pytest.fixture(scope="module", autouse=True)
def fleet(plane: Plane) -> None:
    with plane.services.sessions.begin() as session:
        session.add_all(device(f"edge-{n}", labels={"site": "ab"[n % 2]}) for n in range(4))


def test_a_query_filters_the_list_and_a_wrong_one_is_400_with_its_column(api: Client) -> None:
    assert [item.id for item in api.devices(query='site == "b"').items] == ["edge-1", "edge-3"]
    with pytest.raises(ApiError, match="query, column 6: found '=', expected '=='") as found:
        api.devices(query='site = "b"')
    assert found.value.status == 400


def test_a_group_lives_through_the_api(plane: Plane, api: Client) -> None:
    assert api.create_group(DeviceGroupIn(name="lab", devices=["edge-0"])).devices == 1
    assert api.change_members("lab", MembersIn(add=["edge-1"])).devices == 2
    api.create_group(DeviceGroupIn(name="rest", query='not group("lab")'))
    assert [(group.name, group.devices) for group in api.groups()] == [("lab", 2), ("rest", 2)]
    assert api.change_group("rest", DeviceGroupChange(query='id == "edge-2"')).devices == 1
    assert api.change_group("rest", DeviceGroupChange(query='not group("lab")')).devices == 2
    with pytest.raises(ApiError, match="group 'lab' is used by group rest") as found:
        api.delete_group("lab")
    assert found.value.status == 409
    with plane.client("viewer") as viewer:
        assert viewer.group("rest").query == 'not group("lab")'
        with pytest.raises(ApiError, match="role viewer may not"):
            viewer.delete_group("rest")
        with pytest.raises(ApiError, match="role viewer may not"):
            viewer.change_group("rest", DeviceGroupChange(query="online"))
    api.delete_group("rest")
    api.delete_group("lab")
    assert [entry.action for entry in api.audit()[:2]] == ["group.deleted", "group.deleted"]


def test_labels_and_tables_change_many_and_are_in_the_history(plane: Plane, api: Client) -> None:
    done = api.label_devices(LabelsIn(query='site == "a"', set={"rack": "7"}))
    assert (done.matched, done.changed) == (2, 2)
    wrong = api.import_devices(b"id,label.rack\nedge-1,8\nghost,8\n", "csv")
    assert [(each.line, each.problem) for each in wrong.problems] == [
        (3, "no device 'ghost'; enrol it first")
    ]
    assert api.import_devices(b"id,label.rack\nedge-1,8\n", "csv", dry_run=True).changed == 1
    assert api.device("edge-1").labels == {"site": "b"}
    assert api.import_devices(b"id,label.rack\nedge-1,8\n", "csv").changed == 1
    (change,) = api.device_changes("edge-1")
    assert (change.kind, change.detail) == ("labels", {"rack": "8"})
    assert api.device("edge-1").changes[0]["kind"] == "labels"
    with plane.client("viewer") as viewer:
        for call in (
            lambda: viewer.label_devices(LabelsIn(query="online", set={"a": "b"})),
            lambda: viewer.import_devices(b"id\n", "csv"),
        ):
            with pytest.raises(ApiError, match="role viewer may not"):
                call()
