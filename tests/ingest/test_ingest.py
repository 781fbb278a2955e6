"""Each message is applied once, committed, and then acknowledged; what is wrong is dropped."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from cloud.broker.connection import Message
from cloud.db.tables import (
    Assignment,
    AssignmentEvent,
    AuditEntry,
    Device,
    Inbox,
    Label,
    Metric,
    Rollout,
    Sample,
)
from cloud.ingest import Ingest
from cloud.ingest.alarms import alarms_of
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame
from edge_agent.wire.manifest import TensorSpec
from edge_agent.wire.messages import (
    Ack,
    Correction,
    DeviceEvent,
    DeviceState,
    UpdateReport,
    UplinkHeader,
)
from edge_agent.wire.samples import SampleHeader

NOW = 1_000_000.0


class Bus:
    """Records what is acknowledged."""

    def __init__(self) -> None:
        self.acks: list[tuple[str, Ack]] = []

    def subscribe_batched(self, topic_filter, handler, *, qos=1):
        pass

    def post(self, topic: str, payload: bytes, qos: int = 1) -> None:
        self.acks.append((topic, Ack.decode(payload)))


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def ingest(sessions, blobs, bus):
    return Ingest(sessions, blobs, bus, clock=lambda: NOW)


def up(kind: str, message: bytes, *, seq: int = 1, device: str = "cam-1", stream: str = "s"):
    header = UplinkHeader(stream=stream, seq=seq, created_at=NOW)
    return Message(topics.uplink(device, kind), pack_frame(header, message))


def report(phase: str, generation: int = 1, rollout: str | None = "r1") -> bytes:
    return UpdateReport(
        model="digits", target="t", version=1, counter=1, generation=generation,
        rollout=rollout, phase=phase, reason="x" if phase == "failed" else "",
    ).encode()  # fmt: skip


def sample(sample_id: str = "a") -> bytes:
    header = SampleHeader(
        sample_id=sample_id, prediction_id="p1", model="digits", version=1, policy="uniform",
        inclusion_prob=0.5, taken_at=NOW - 5, predicted="3", scores=(0.9, 0.1),
        tensors=(TensorSpec(name="image", datatype="FP32", shape=(1, 8, 8)),),
    )  # fmt: skip
    return pack_frame(header, b"compressed tensors")


def metrics(**changes) -> bytes:
    fields = {
        "model": "digits", "version": 1, "window_s": 30.0, "requests": 10, "errors": 0,
        "rejects": 0, "corrections": 0, "latency_p50_us": 80.0, "latency_p99_us": 200.0,
        "rss_mib": 60.0,
    }  # fmt: skip
    return json.dumps({**fields, **changes}).encode()


def rows(sessions, table):
    with sessions() as session:
        return session.scalars(select(table)).all()


def test_a_message_that_comes_twice_is_applied_once_and_acknowledged_twice(ingest, sessions, bus):
    for _ in range(2):
        ingest.handle([up("report", report("downloading"), seq=7)])
    ingest.handle([up("report", report("downloading"), seq=7)] * 2)
    assert len(rows(sessions, AssignmentEvent)) == 1
    assert [ack.seqs for _, ack in bus.acks] == [(7,), (7,), (7, 7)]
    assert bus.acks[0][0] == topics.ack("cam-1")


def test_the_same_number_of_another_stream_or_device_is_another_message(ingest, sessions):
    ingest.handle([
        up("report", report("queued")),
        up("report", report("queued"), stream="s2"),
        up("report", report("queued"), device="cam-2"),
    ])  # fmt: skip
    assert len(rows(sessions, AssignmentEvent)) == 3


def test_a_sample_becomes_a_row_and_a_blob(ingest, sessions, blobs):
    ingest.handle([up("sample", sample())])
    (row,) = rows(sessions, Sample)
    assert (row.device, row.policy, row.inclusion_prob, row.predicted) == (
        "cam-1", "uniform", 0.5, "3",
    )  # fmt: skip
    assert blobs.get(row.blob) == b"compressed tensors"
    assert SampleHeader.model_validate(row.header).tensors[0].shape == (1, 8, 8)


def test_a_sample_id_of_another_device_is_not_overwritten(ingest, sessions):
    ingest.handle([up("sample", sample("a"))])
    ingest.handle([up("sample", sample("a"), device="cam-2")])
    (row,) = rows(sessions, Sample)
    assert row.device == "cam-1"
    assert ingest.counts["malformed"] == 1


def test_a_correction_becomes_a_label_of_the_models_project(ingest, sessions):
    correction = Correction(
        model="digits", version=1, prediction_id="p1", predicted="3", label="8", at=NOW - 1
    )
    ingest.handle([up("correction", correction.encode())])
    (row,) = rows(sessions, Label)
    assert (row.project, row.prediction_id, row.label, row.source, row.device, row.at) == (
        "demo", "p1", "8", "correction", "cam-1", NOW - 1,
    )  # fmt: skip


def test_a_report_moves_the_assignment_of_its_own_generation_only(ingest, sessions):
    with sessions.begin() as session:
        session.add(
            Rollout(
                id="r1", model="digits", version=1, state="RUNNING", plan={}, machine={},
                created_by="x", created_at=0, updated_at=0,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Assignment(
                rollout="r1", device="cam-1", generation=2, wave=0, target="t", phase="offered",
                updated_at=0,
            )
        )  # fmt: skip
    ingest.handle([up("report", report("failed", generation=1))])
    assert rows(sessions, Assignment)[0].phase == "offered"
    ingest.handle([up("report", report("probation", generation=2), seq=2)])
    assert rows(sessions, Assignment)[0].phase == "probation"
    assert len(rows(sessions, AssignmentEvent)) == 2


def test_metrics_and_events_are_kept_and_the_audit_chain_holds(ingest, sessions):
    event = DeviceEvent(name="disk_full", fields={"free_mib": 3}, at=NOW)
    ingest.handle([up("metrics", metrics()), up("event", event.encode(), seq=2)])
    (metric,) = rows(sessions, Metric)
    assert metric.report["requests"] == 10
    (entry,) = rows(sessions, AuditEntry)
    assert (entry.actor, entry.action) == ("device:cam-1", "device.disk_full")
    with sessions() as session:
        assert audit.verify(session) == 1


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("report", b"{not json"),
        ("report", b"{}"),
        ("report", report("downloading") + b" " * 9000),
        ("sample", b"\xff\xff\xff\xff"),
        ("metrics", metrics(latency_p99_us=float("nan"))),
        ("metrics", metrics(requests=-1)),
        ("metrics", metrics(requests=10**400)),
        ("correction", Correction(
            model="unknown", version=1, prediction_id="p", predicted="", label="1", at=0
        ).encode()),
        ("event", DeviceEvent(name="n" * 65, at=0).encode()),
        ("nonsense", b"{}"),
    ],
)  # fmt: skip
def test_a_malformed_message_is_dropped_and_acknowledged_and_the_others_stand(
    ingest, sessions, bus, kind, payload
):
    ingest.handle([
        up("metrics", metrics(), seq=1),
        up(kind, payload, seq=2),
        up("metrics", metrics(), seq=3),
    ])  # fmt: skip
    assert [ack.seqs for _, ack in bus.acks] == [(1, 2, 3)]
    assert len(rows(sessions, Metric)) == 2
    assert ingest.counts == {"applied": 2, "malformed": 1}


@pytest.mark.parametrize("data", [b"", b"\x00" * 3, b"\x10\x00\x00\x00{}", b"x" * 200_000])
def test_what_has_no_readable_header_is_dropped_without_an_answer(ingest, bus, data):
    ingest.handle([Message(topics.uplink("cam-1", "report"), data)])
    assert bus.acks == []
    assert ingest.counts["malformed"] == 1


@pytest.mark.parametrize("device", ["gone", "nobody"])
def test_a_revoked_or_unknown_device_is_neither_applied_nor_acknowledged(
    ingest, sessions, bus, device
):
    ingest.handle([up("metrics", metrics(), device=device), up("metrics", metrics())])
    assert [topic for topic, _ in bus.acks] == [topics.ack("cam-1")]
    assert [row.device for row in rows(sessions, Metric)] == ["cam-1"]
    ingest.handle_states([state("b1", device=device)])
    assert ingest.counts["rejected"] == 2


def test_nothing_is_acknowledged_while_the_database_is_away(ingest, sessions, bus):
    with sessions() as session:
        session.connection().exec_driver_sql("ALTER TABLE inbox RENAME TO away")
        session.commit()
    with pytest.raises(DBAPIError):
        ingest.handle([up("metrics", metrics())])
    assert bus.acks == []
    with sessions() as session:
        session.connection().exec_driver_sql("ALTER TABLE away RENAME TO inbox")
        session.commit()
    ingest.handle([up("metrics", metrics())])
    assert len(rows(sessions, Metric)) == 1
    assert len(bus.acks) == 1


def test_a_row_that_the_database_refuses_does_not_take_its_batch_along(ingest, sessions, bus):
    with sessions.begin() as session:
        sqlite = session.connection().dialect.name == "sqlite"
        session.connection().exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON metrics WHEN NEW.version = 13 "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            if sqlite
            else "ALTER TABLE metrics ADD CONSTRAINT refuse CHECK (version <> 13)"
        )
    ingest.handle([
        up("metrics", metrics(), seq=1),
        up("metrics", metrics(version=13), seq=2),
        up("metrics", metrics(), seq=3),
    ])  # fmt: skip
    assert len(rows(sessions, Metric)) == 2
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Inbox)) == 2
    assert sorted(seq for _, ack in bus.acks for seq in ack.seqs) == [1, 2, 3]


def state(boot: str, *, online: bool = True, device: str = "cam-1", **fields) -> Message:
    payload = DeviceState(boot=boot, online=online, **fields).encode()
    return Message(topics.state(device), payload, retained=True)


def device(sessions, name: str = "cam-1") -> Device:
    with sessions() as session:
        row = session.get(Device, name)
        assert row is not None
        return row


def test_a_birth_sets_a_device_online_with_what_it_reports(ingest, sessions):
    ingest.handle_states([state("b1", desired_version=4, agent_version="1")])
    row = device(sessions)
    assert (row.online, row.boot, row.last_seen) == (True, "b1", NOW)
    assert row.reported["desired_version"] == 4


def births(*order: str, first: int = 0) -> list[Message]:
    return [state(boot, at=NOW + number) for number, boot in enumerate(order, start=first)]


def test_attack_32_a_cloned_identity_is_in_the_audit_once_an_hour(
    sessions, blobs, bus, ingest
) -> None:
    now = NOW
    beside = Ingest(sessions, blobs, bus, clock=lambda: now)
    for number in range(0, 12, 4):
        for each in (ingest, beside):  # each learns all of it
            each.handle_states(births(*"abab", first=number))
    [entry] = rows(sessions, AuditEntry)
    assert (entry.actor, entry.action, entry.subject) == (
        "control-plane", "device.identity_cloned", "cam-1",
    )  # fmt: skip
    assert entry.detail == {"starts": ["a", "b"]}
    with sessions() as session:
        assert [each.id for each in alarms_of(session, "cam-1")] == [entry.id]
        assert alarms_of(session, "cam-2") == []
    now += 3601
    beside.handle_states(births(*"ab", first=20))
    assert len(rows(sessions, AuditEntry)) == 2


def test_attack_32_an_alarm_that_could_not_be_kept_is_raised_again(ingest, sessions) -> None:
    def rename(before: str, after: str) -> None:
        with sessions() as session:
            session.connection().exec_driver_sql(f"ALTER TABLE {before} RENAME TO {after}")
            session.commit()

    ingest.handle_states(births(*"aba"))
    rename("audit", "away")
    with pytest.raises(DBAPIError):
        ingest.handle_states(births("b", first=5))
    rename("away", "audit")
    ingest.handle_states(births("a", first=6))
    assert [entry.action for entry in rows(sessions, AuditEntry)] == ["device.identity_cloned"]


def test_attack_32_honest_restarts_and_repeated_births_are_no_alarm(ingest, sessions) -> None:
    for _ in range(3):
        ingest.handle_states([*births(*"aabbcd"), state("d", online=False)])
    assert rows(sessions, AuditEntry) == []
    assert device(sessions).boot == "d"


def test_attack_32_a_device_cannot_raise_the_alarm_itself(ingest, sessions) -> None:
    event = DeviceEvent(name="identity_cloned", at=NOW)
    ingest.handle([up("event", event.encode())])
    with sessions() as session:
        assert alarms_of(session, "cam-1") == []


def test_a_twin_that_a_device_could_not_read_is_among_its_alarms(ingest, sessions) -> None:
    event = DeviceEvent(name="twin.refused", fields={"reason": "malformed_twin"}, at=NOW)
    ingest.handle([up("event", event.encode())])
    with sessions() as session:
        [alarm] = alarms_of(session, "cam-1")
    assert (alarm.action, alarm.detail) == ("device.twin.refused", {"reason": "malformed_twin"})


def test_a_will_of_an_earlier_boot_is_ignored_and_keeps_what_was_reported(ingest, sessions):
    ingest.handle_states([state("b1"), state("b2", desired_version=5), state("b1", online=False)])
    assert device(sessions).online
    ingest.handle_states([state("b2", online=False)])
    row = device(sessions)
    assert not row.online
    assert row.reported["desired_version"] == 5


def test_a_state_that_does_not_parse_changes_nothing(ingest, sessions):
    ingest.handle_states([Message(topics.state("cam-1"), b"[]"), Message("other/topic", b"{}")])
    assert not device(sessions).online
    assert ingest.counts["malformed"] == 2


def test_a_state_that_no_database_keeps_does_not_hold_up_the_others(ingest, sessions):
    """PostgreSQL has no text with a NUL, and JSON that holds one breaks whoever queries it."""
    ingest.handle_states([state("b\x00"), state("b1")])
    assert device(sessions).boot == "b1"
    assert ingest.counts["malformed"] == 1
