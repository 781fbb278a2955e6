from __future__ import annotations

import json

from sqlalchemy import func, select

from cloud.db.engine import Sessions
from cloud.db.tables import Device, DeviceHistory
from cloud.devices import history
from cloud.ingest.state import apply_state, take_offline_below
from cloud.orchestrator.twins import set_model
from edge_agent.wire.messages import DeviceState, Inventory, ModelState
from tests.devices_cloud.fleet import NOW, device

INVENTORY = Inventory(
    machine="x86_64", system="Linux", cpu_flags=("avx2",), cores=4, memory_mib=8000,
    disk_free_mib=1, python="3.11", runtimes={"onnxruntime": "1.20"},
)  # fmt: skip


TWIN = {
    "version": 3,
    "models": {"m": {"target": "t", "version": 1, "counter": 1, "generation": 3}},
}


def birth(boot: str, *, version: int = 1, agent: str = "0.1") -> DeviceState:
    model = ModelState(version=version, counter=1, sha256="a" * 64, variant="v", phase="healthy")
    return DeviceState(
        boot=boot, online=True, agent_version=agent, inventory=INVENTORY, models={"m": model}
    )


def kinds(sessions: Sessions) -> list[tuple[str, float]]:
    with sessions() as session:
        rows = history.history_of(session, "d", limit=100)
        return [(row.kind, row.at - NOW) for row in reversed(rows)]


def say(sessions: Sessions, state: DeviceState, at: float) -> None:
    with sessions.begin() as session:
        apply_state(session.get_one(Device, "d"), state, NOW + at)


def test_presence_and_reports_are_kept_with_their_times(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(device("d"))
    say(sessions, birth("b1"), 1)
    say(sessions, birth("b1"), 2)  # repeated
    say(sessions, birth("b1", version=2), 3)
    say(sessions, DeviceState(boot="b1", online=False), 4)
    say(sessions, birth("b2", version=2, agent="0.2"), 5)
    say(sessions, DeviceState(boot="b1", online=False), 6)  # the will of an older start
    say(sessions, birth("b3", version=2, agent="0.2"), 7)  # restarted before its will came
    assert kinds(sessions) == [
        ("online", 1), ("reported", 1), ("inventory", 1), ("reported", 3), ("offline", 4),
        ("online", 5), ("reported", 5), ("online", 7),
    ]  # fmt: skip
    with sessions() as session:
        newest = history.history_of(session, "d", limit=2)
        assert [row.detail for row in newest] == [{"boot": "b3"}, {"agent": "0.2"}]
        assert session.get_one(Device, "d").online


def test_a_birth_brings_the_inventory_up_to_date(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(device("d", inventory={"cores": 2, "runtimes": {}}))
    say(sessions, birth("b1"), 1)
    say(sessions, DeviceState(boot="b2", online=True), 2)  # an agent that says nothing of it
    with sessions() as session:
        row = session.get_one(Device, "d")
        assert row.inventory == json.loads(INVENTORY.model_dump_json())
        assert row.facts["runtimes"] == {"onnxruntime": "1.20"}


def test_a_desired_twin_is_kept_with_its_version(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(device("d", desired=TWIN))
    with sessions.begin() as session:
        row = session.get_one(Device, "d")
        row.desired_version = 3
        set_model(session, row, "m", None, rollout=None, probation_s=1, now=NOW)
    with sessions() as session:
        (kept,) = history.history_of(session, "d", limit=9)
        assert (kept.kind, kept.detail) == ("desired", {"version": 4, "m": None})


def test_devices_that_go_with_their_gateway_go_offline_in_the_history_too(
    sessions: Sessions,
) -> None:
    with sessions.begin() as session:
        session.add_all([device("d", online=True, gateway="g"), device("e", gateway="g")])
    with sessions.begin() as session:
        take_offline_below(session, ["g"], [], NOW + 1)
    assert kinds(sessions) == [("offline", 1)]
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(DeviceHistory)) == 1


def test_rows_that_are_too_old_are_dropped(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all(
            DeviceHistory(device="d", kind="online", at=NOW - age, detail={})
            for age in (history.KEPT_S + 1, history.KEPT_S - 1, 0)
        )
    with sessions.begin() as session:
        history.prune(session, NOW)
    assert len(kinds(sessions)) == 2
