"""Where a rollout's state is between turns: rows, and the leader's memory."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import event, select, text

import cloud.db.engine
from cloud.db.engine import open_engine
from cloud.db.tables import Assignment, Device
from cloud.orchestrator.stored import load
from cloud.orchestrator.turn import MAX_ASSIGNED

WRITES = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) assignments\b")
READS_ALL = "SELECT assignments.rollout, assignments.device"


def test_a_turn_without_news_writes_no_assignment(plane) -> None:
    plane.enrol("d0", "d1", "d2")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.turn()
    before = plane.row(rollout).revision
    statements: list[str] = []
    engine = plane.sessions.kw["bind"]
    listen = lambda *args: statements.append(args[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", listen)
    plane.turn()
    event.remove(engine, "before_cursor_execute", listen)
    assert plane.row(rollout).revision == before
    assert statements
    assert not [each for each in statements if WRITES.match(each) or READS_ALL in each]


def test_only_the_assignments_that_changed_are_written(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    with plane.sessions() as session:
        before = session.get_one(Assignment, (rollout, "d1")).updated_at
    plane.report("d0", "downloading")
    plane.turn()
    with plane.sessions() as session:
        assert session.get_one(Assignment, (rollout, "d0")).machine["phase"] == "downloading"
        assert session.get_one(Assignment, (rollout, "d1")).updated_at == before


def test_what_memory_holds_is_what_the_rows_say(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.report("d0", "healthy")
    plane.turn()
    with plane.sessions() as session:
        row = plane.row(rollout)
        known = plane.orchestrator._kept.get(rollout, row.revision)
        assert known is not None
        assert load(session, row).rollout == known.rollout


def test_a_command_between_turns_is_seen_by_a_leader_that_remembers(plane) -> None:
    plane.enrol("d0")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.command(rollout, "cancel")
    plane.turn()
    assert plane.publisher.twin("d0").models == {}


def test_a_device_that_goes_away_and_confirms_is_noticed_by_its_changes(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1, phase_timeout_s=1000)
    plane.turn()
    plane.turn()
    with plane.sessions.begin() as session:
        device = session.get_one(Device, "d0")
        device.online = False
        device.reported = {"desired_version": 1}
    plane.turn()
    row = plane.row(rollout)
    known = plane.orchestrator._kept.get(rollout, row.revision)
    assert known is not None
    assert not known.rollout.assignments["d0"].online
    assert known.rollout.assignments["d0"].delivered_at == plane.now


def test_a_turn_that_failed_leaves_no_memory_of_itself(plane) -> None:
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1)
    plane.turn()
    plane.report("d0", "downloading")
    engine = plane.sessions.kw["bind"]

    def fail(*_: object) -> None:
        raise RuntimeError("the commit fails")

    event.listen(engine, "commit", fail)
    with pytest.raises(RuntimeError, match="the commit fails"):
        plane.orchestrator.turn(plane.now + 1)
    event.remove(engine, "commit", fail)
    plane.turn()
    assert plane.phases(rollout) == {"d0": "downloading", "d1": "offered"}


def test_a_large_wave_is_assigned_over_several_turns(plane) -> None:
    devices = [f"d{index}" for index in range(MAX_ASSIGNED + 5)]
    plane.enrol(*devices)
    plane.release(1)
    rollout = plane.start(1)
    plane.orchestrator.turn(plane.now)
    with plane.sessions() as session:
        assert plane.waiting(session) == MAX_ASSIGNED
    assert Counter(plane.phases(rollout).values()) == {"offered": MAX_ASSIGNED, "queued": 5}
    plane.new_orchestrator("first").turn(plane.now)  # as after a restart
    assert Counter(plane.phases(rollout).values()) == {"offered": MAX_ASSIGNED + 5}


def test_states_of_an_earlier_schema_become_rows(tmp_path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'skerry.db'}")
    config = Config()
    migrations = f"{cloud.db.engine.__file__.rsplit('/', 1)[0]}/migrations"
    config.set_main_option("script_location", migrations)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        connection.execute(
            text("INSERT INTO rollouts VALUES ('r', 'm', 1, 'RUNNING', '{}', :machine, 'a', 0, 0)"),
            {"machine": '{"rollout": {"id": "r", "assignments": {"d": {"phase": "x"}}}}'},
        )
        connection.execute(
            text("INSERT INTO assignments VALUES ('r', 'd', 1, 0, 't', 'x', '', '', 0)")
        )
        command.upgrade(config, "0009")
        assert connection.scalar(select(Assignment.machine)) == {"phase": "x"}
        assert connection.scalar(text("SELECT machine FROM rollouts")) == '{"rollout": {"id": "r"}}'
    engine.dispose()
