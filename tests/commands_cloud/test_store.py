"""Commands in the control plane: asked for, sent by the outbox, answered, run out, audited."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import func, select

from cloud.blobs import Blobs
from cloud.broker.outgoing import NotConnected
from cloud.commands import store
from cloud.commands.answers import apply_report
from cloud.commands.sweep import sweep
from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, CommandPart, Device, Outbox
from cloud.db.tables import Command as CommandRow
from cloud.errors import Conflict, NotFound, UserError
from cloud.orchestrator.outbox import publish_pending
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame
from edge_agent.wire.commands import PART_BYTES, Attachment, Command, CommandReport
from edge_agent.wire.errors import WireError
from fleet.client.command_schemas import CommandIn
from fleet.commands.machine import GRACE_S, RESEND_FIRST_S

NOW = 1_700_000_000.0


@dataclass
class Broker:
    """Takes messages as a broker would, unless it is away."""

    sent: list[tuple[str, bytes, bool, int | None]] = field(default_factory=list)
    away: bool = False

    def publish_all(self, messages):
        if self.away:
            return [NotConnected("no connection to the broker") for _ in messages]
        self.sent += [(each.topic, each.payload, each.retain, each.expiry_s) for each in messages]
        return [None for _ in messages]

    def commands(self) -> list[Command]:
        return [Command.decode(payload) for _, payload, _, _ in self.sent]


class Nobody:
    """A director that signs nothing: commands are not signed."""

    def assign_all(self, sets) -> None:
        assert not sets, "a command needs no signed set"

    def refresh_timestamps(self) -> int:
        return 0


@dataclass
class World:
    sessions: Sessions
    blobs: Blobs
    broker: Broker = field(default_factory=Broker)
    now: float = NOW

    def devices(self, *names: str, online: bool = True, **fields: Any) -> None:
        with self.sessions.begin() as session:
            session.add_all(
                Device(
                    id=name, profile=fields.get("profile", "p"), labels=fields.get("labels", {}),
                    inventory={}, certificate_serial=name, certificate_expires_at=0.0,
                    enrolled_at=0.0, reported={}, desired={}, online=online,
                    revoked=fields.get("revoked", False), gateway=fields.get("gateway", ""),
                )
                for name in names
            )  # fmt: skip

    def online(self, name: str, online: bool) -> None:
        with self.sessions.begin() as session:
            session.get_one(Device, name).online = online

    def ask(self, *devices: str, name: str = "logs", most: int = 10_000, **fields: Any):
        request = CommandIn(name=name, devices=list(devices), **fields)
        with self.sessions.begin() as session:
            return store.ask(session, request, "ann", most=most, now=self.now)

    def pass_time(self, seconds: float = 0.0) -> None:
        """One turn of the orchestrator after some seconds."""
        self.now += seconds
        with self.sessions.begin() as session:
            sweep(session, self.now)
        publish_pending(self.sessions, Nobody(), self.broker, self.now)

    def answer(self, id_: str, state: str, device: str = "a", body: bytes = b"", **fields: Any):
        report = CommandReport(command=id_, state=state, boot="b", at=self.now, **fields)
        with self.sessions.begin() as session:
            apply_report(session, self.blobs, device, pack_frame(report, body), self.now)

    def row(self, id_: str) -> CommandRow:
        with self.sessions() as session:
            return store.find(session, id_)

    def states(self, batch: str) -> dict[str, str]:
        with self.sessions() as session:
            rows = session.scalars(select(CommandRow).where(CommandRow.batch == batch))
            return {row.device: row.state for row in rows}

    def audited(self) -> list[str]:
        with self.sessions() as session:
            audit.verify(session)
            query = select(AuditEntry).order_by(AuditEntry.id)
            return [f"{entry.actor} {entry.action}" for entry in session.scalars(query)]


@pytest.fixture
def world(sessions: Sessions, blobs: Blobs) -> World:
    made = World(sessions, blobs)
    made.devices("a", "b")
    made.devices("away", online=False)
    return made


# ── sending ──────────────────────────────────────────────────────────────────────────────────────


def test_a_command_leaves_by_the_outbox_with_its_expiry_and_is_sent_once_the_broker_has_it(world):
    [id_] = world.ask("a", arguments={"lines": 7}, expires_in_s=100).ids
    assert world.row(id_).state == "queued"
    world.pass_time(1)
    [(topic, payload, retain, expiry_s)] = world.broker.sent
    assert (topic, retain, expiry_s) == (topics.command("a"), False, 99)
    command = Command.decode(payload)
    assert (command.id, command.device, command.name) == (id_, "a", "logs")
    assert (command.arguments, command.expires_at) == ({"lines": 7}, NOW + 100)
    world.pass_time(1)
    assert (world.row(id_).state, world.row(id_).attempts) == ("sent", 1)


def test_what_is_for_a_device_that_is_away_waits_here_and_leaves_when_it_returns(world):
    [id_] = world.ask("away").ids
    world.pass_time(10)
    assert world.broker.sent == []
    world.online("away", True)
    world.pass_time(10)
    assert [command.id for command in world.broker.commands()] == [id_]


@pytest.mark.parametrize("online", [True, False])
def test_a_device_below_a_gateway_is_reached_by_the_gateways_topic(world, online):
    world.devices("behind", online=online, gateway="gate")
    world.ask("behind")
    world.online("behind", True)
    world.pass_time(1)
    world.pass_time(0)
    assert [sent[0] for sent in world.broker.sent] == ["skerry/v1/g/gate/d/behind/command"]


def test_what_is_not_answered_is_sent_again_with_growing_pauses(world):
    [id_] = world.ask("a").ids
    for _ in range(40):
        world.pass_time(5)
    assert [command.id for command in world.broker.commands()] == [id_] * 3
    world.answer(id_, "accepted")
    for _ in range(3):
        world.pass_time(RESEND_FIRST_S)
    assert len(world.broker.sent) == 3


def test_what_expired_before_the_broker_was_there_is_dropped(world):
    world.broker.away = True
    [id_] = world.ask("a", expires_in_s=10).ids
    world.pass_time(5)
    world.broker.away = False
    world.pass_time(6)
    world.pass_time(1)
    assert world.broker.sent == []
    assert (world.row(id_).state, world.row(id_).reason) == ("expired", "not_delivered")


def test_a_query_means_every_device_that_matches_and_no_revoked_one(world):
    world.devices("c1", "c2", profile="pi", labels={"site": "x"})
    world.devices("gone", profile="pi", revoked=True)
    request = CommandIn(name="resend", query='profile == "pi" and site == "x"')
    with world.sessions.begin() as session:
        asked = store.ask(session, request, "ann", most=10_000, now=world.now)
    assert world.states(asked.batch) == {"c1": "queued", "c2": "queued"}


@pytest.mark.parametrize(
    ("fields", "error", "line"),
    [
        ({"devices": ["a", "ghost"]}, NotFound, "no device 'ghost'"),
        ({"devices": ["gone"]}, UserError, "device gone is revoked"),
        ({"query": 'profile == "none"'}, UserError, "no device matches"),
        ({"query": "profile =="}, UserError, "query, column 11"),
        ({"devices": ["a"], "arguments": {"lines": 0}}, UserError, "arguments of logs: lines"),
        ({"devices": ["a"], "arguments": {"depth": 3}}, UserError, "arguments of logs: depth"),
        ({"devices": ["a", "b"], "most": 1}, UserError, "at most 1"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_one_line_and_asks_nobody(
    world, fields, error, line
):
    world.devices("gone", revoked=True)
    most = fields.get("most", 10_000)
    request = CommandIn(name="logs", **{key: fields[key] for key in fields if key != "most"})
    with pytest.raises(error, match=line), world.sessions.begin() as session:
        store.ask(session, request, "ann", most=most, now=world.now)
    with world.sessions() as session:
        for table in (CommandRow, Outbox, AuditEntry):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_a_device_with_too_many_open_commands_gets_no_more(world):
    for _ in range(store.MAX_OPEN):
        world.ask("a")
    with pytest.raises(Conflict, match="device a has 16 commands open"):
        world.ask("b", "a")


@pytest.mark.slow
def test_ten_thousand_devices_are_asked_in_one_transaction(world):
    world.devices(*(f"d{number}" for number in range(10_000)), profile="many")
    request = CommandIn(name="resend", query='profile == "many"')
    with world.sessions.begin() as session:
        asked = store.ask(session, request, "ann", most=10_000, now=world.now)
    assert len(set(asked.ids)) == 10_000
    assert world.audited() == ["ann command.asked"]
    for _ in range(3):
        world.pass_time(0.5)
    with world.sessions() as session:
        waiting = select(func.count()).where(Outbox.published_at.is_(None))
        assert session.scalar(waiting) == 10_000 - 3 * 500
    assert len(world.broker.sent) == 3 * 500


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_how_a_command_ended_is_kept_and_audited(world):
    [id_] = world.ask("a", name="resend", reason="checking").ids
    world.answer(id_, "accepted")
    assert world.row(id_).state == "accepted"
    world.answer(id_, "done", result={"models": ["m"]})
    row = world.row(id_)
    assert (row.state, row.certain, row.result, row.boot) == ("done", True, {"models": ["m"]}, "b")
    world.answer(id_, "failed", reason="late")
    assert world.row(id_).state == "done"
    assert world.audited() == ["ann command.asked", "device:a command.done"]


def test_no_device_answers_for_another(world):
    [id_] = world.ask("a").ids
    with pytest.raises(WireError, match="no such command of this device"):
        world.answer(id_, "done", device="b")
    assert world.row(id_).state == "queued"


def parts_of(data: bytes) -> tuple[Attachment, list[bytes]]:
    cut = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    attachment = Attachment(
        media_type="application/zip",
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        parts=len(cut),
    )
    return attachment, cut


@pytest.mark.parametrize("order", [(0, 1, 2, "done"), ("done", 2, 0, 1), (2, 1, "done", 1, 0)])
def test_an_attachment_is_put_together_in_whatever_order_its_parts_come(world, order):
    data = uuid.uuid4().bytes * 10_000
    attachment, cut = parts_of(data)
    [id_] = world.ask("a", name="diagnostics").ids
    for step in order:
        assert world.row(id_).state in ("queued", "accepted")
        if step == "done":
            world.answer(id_, "done", attachment=attachment, result={"bytes": len(data)})
        else:
            world.answer(id_, "part", attachment=attachment, part=step, body=cut[step])
    row = world.row(id_)
    assert (row.state, row.result) == ("done", {"bytes": len(data)})
    assert world.blobs.get(row.blob) == data
    with world.sessions() as session:
        assert session.scalar(select(func.count()).select_from(CommandPart)) == 0


def test_an_attachment_with_another_digest_is_a_failure(world):
    attachment, _ = parts_of(b"x" * 100)
    [id_] = world.ask("a").ids
    world.answer(id_, "part", attachment=attachment, body=b"y" * 100)
    world.answer(id_, "done", attachment=attachment)
    row = world.row(id_)
    assert (row.state, row.reason, row.blob) == ("failed", "attachment_corrupt", None)


@pytest.mark.parametrize(
    ("state", "fields", "body"),
    [
        ("part", {}, b"x"),
        ("part", {"part": 1}, b"x" * 100),
        ("part", {"part": 0}, b"x" * 99),
        ("done", {}, b"x"),
        ("done", {"result": {"much": "x" * 9000}}, b""),
    ],
    ids=["too short", "beyond the end", "one short", "a body of nothing", "a giant result"],
)
def test_an_answer_that_makes_no_sense_changes_nothing(world, state, fields, body):
    attachment, _ = parts_of(b"x" * 100)
    [id_] = world.ask("a").ids
    with pytest.raises(WireError):
        world.answer(id_, state, body=body, attachment=attachment, **fields)
    assert world.row(id_).state == "queued"


def test_an_endless_number_in_a_result_is_kept_as_nothing(world):
    [id_] = world.ask("a").ids
    world.answer(id_, "done", result={"x": math.inf})
    assert json.dumps(world.row(id_).result) == '{"x": null}'


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def test_commands_run_out_together_with_one_entry_in_the_audit(world):
    asked = world.ask("a", "b", "away", expires_in_s=30)
    world.pass_time(1)
    world.pass_time(1)
    world.pass_time(28)
    assert world.states(asked.batch) == {"a": "sent", "b": "sent", "away": "expired"}
    world.pass_time(GRACE_S)
    assert set(world.states(asked.batch).values()) == {"expired"}
    assert world.audited()[1:] == ["orchestrator command.expired"] * 2


def test_what_was_accepted_and_never_ended_times_out_and_a_late_word_corrects_it(world):
    [id_] = world.ask("a", timeout_s=20).ids
    world.answer(id_, "accepted")
    world.pass_time(20 + GRACE_S)
    assert (world.row(id_).state, world.row(id_).certain) == ("timed_out", False)
    world.answer(id_, "done")
    assert (world.row(id_).state, world.row(id_).certain) == ("done", True)


# ── taking back ──────────────────────────────────────────────────────────────────────────────────


def test_what_nobody_has_seen_is_taken_back_without_a_trace_on_the_wire(world):
    [id_] = world.ask("a").ids
    with world.sessions.begin() as session:
        store.cancel(session, id_, "bob", now=world.now)
    world.pass_time(1)
    assert (world.row(id_).state, world.broker.sent) == ("cancelled", [])
    assert world.audited() == ["ann command.asked", "bob command.cancelled"]


def test_taking_back_what_was_sent_says_so_and_what_is_accepted_cannot_be(world):
    first, second = world.ask("a", "b").ids
    world.pass_time(1)
    world.answer(second, "accepted", device="b")
    with world.sessions.begin() as session:
        taken = store.cancel(session, first, "bob", now=world.now)
        assert "may do it" in taken.detail
    with pytest.raises(Conflict, match="is at it"), world.sessions.begin() as session:
        store.cancel(session, second, "bob", now=world.now)


def test_a_batch_is_taken_back_as_far_as_nobody_answered(world):
    asked = world.ask("a", "b", "away")
    world.answer(asked.ids[0], "accepted")
    with world.sessions.begin() as session:
        assert store.cancel_batch(session, asked.batch, "bob", now=world.now) == 2
    assert world.states(asked.batch) == {"a": "accepted", "b": "cancelled", "away": "cancelled"}
    with pytest.raises(NotFound), world.sessions.begin() as session:
        store.cancel_batch(session, "none", "bob", now=world.now)
