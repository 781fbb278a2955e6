"""The wire contract, held against the real agent and the simulated one alike."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_agent.wire.base import unpack_frame
from edge_agent.wire.commands import Command, CommandReport
from edge_agent.wire.messages import FINAL_PHASES
from tests.agent.conftest import MODEL, PROFILE
from tests.protocol.conftest import Cloud, Subjects

pytestmark = pytest.mark.slow

WAY = ["downloading", "verified", "staged", "activating", "probation", "healthy"]


def born(cloud: Cloud) -> str:
    """Boot of a birth that was heard."""
    cloud.until(lambda: any(state.online for state in cloud.states), "a birth")
    return [state for state in cloud.states if state.online][-1].boot


def answers(cloud: Cloud, command: str) -> list[CommandReport]:
    heads = [unpack_frame(each.payload, CommandReport)[0] for each in cloud.of_kind("command")]
    return [head for head in heads if head.command == command]


def command(subject: str, name: str, number: int, *, life_s: float = 60.0) -> Command:
    now = time.time()
    return Command(
        id=f"c-{subject}-{number}", device=subject, name=name, issued_at=now - 1,
        expires_at=now + life_s,
    )  # fmt: skip


def settle(cloud: Cloud, subject: str, number: int) -> None:
    """Wait until the device has had all that was said so far.

    It takes messages in their order, and answers a command behind what it does about others.
    """
    behind = command(subject, "explode", number)
    cloud.say("command", behind.encode())
    cloud.until(lambda: answers(cloud, behind.id), "an answer")


def test_birth_and_last_word_carry_the_same_boot(cloud: Cloud, subjects: Subjects) -> None:
    subject = subjects.new("birth")
    subject.start()
    boot = born(cloud)
    birth = cloud.states[-1]
    assert birth.boot and birth.profile == PROFILE and birth.inventory is not None
    assert birth.desired_version == 0 and birth.models == {}
    subject.stop()
    cloud.until(lambda: not cloud.states[-1].online, "the last word")
    assert cloud.states[-1].boot == boot


def test_a_crash_leaves_the_will_of_that_start_and_the_next_has_another_boot(
    cloud: Cloud, subjects: Subjects
) -> None:
    subject = subjects.new("will")
    subject.start()
    boot = born(cloud)
    subject.crash()
    cloud.until(lambda: not cloud.states[-1].online, "the will")
    assert cloud.states[-1].boot == boot
    subject.start()
    cloud.until(lambda: cloud.states[-1].online, "the next birth")
    assert cloud.states[-1].boot != boot


def test_a_twin_is_followed_through_every_phase_in_order(
    cloud: Cloud, subjects: Subjects, tmp_path: Path
) -> None:
    release = cloud.release(1, tmp_path)
    subject = subjects.new("phases")
    subject.start()
    generation = cloud.assign(release)
    cloud.until(lambda: "healthy" in cloud.phases(), "healthy")
    assert cloud.phases(generation) == WAY
    for report in cloud.reports():
        assert (report.target, report.version, report.model) == (release.target, 1, MODEL)
    cloud.until(
        lambda: cloud.states[-1].models and cloud.states[-1].models[MODEL].phase == "healthy",
        "a state that tells it",
    )
    assert cloud.states[-1].desired_version == generation
    assert cloud.states[-1].models[MODEL].counter == release.counter
    streams = {each.header.stream for each in cloud.uplinks}
    assert len(streams) == 1
    seqs = [each.header.seq for each in cloud.uplinks]
    assert seqs == sorted(seqs) and set(seqs) == set(range(1, max(seqs) + 1))


def test_what_was_not_acknowledged_comes_again_with_the_same_name_and_bytes(
    cloud: Cloud, subjects: Subjects, tmp_path: Path
) -> None:
    release = cloud.release(1, tmp_path)
    subject = subjects.new("resend")
    cloud.acknowledging = False
    subject.start()
    cloud.assign(release)
    cloud.until(lambda: "healthy" in cloud.phases(), "healthy")
    settled = [each.key for each in cloud.of_kind("report")][:3]
    cloud.acknowledge(*cloud.of_kind("report")[:3], some_later_field=1)
    settle(cloud, subject.name, 1)
    first = {each.key: each for each in cloud.uplinks}
    kept = first.keys() - set(settled)
    cloud.uplinks.clear()
    cloud.restart_broker()
    cloud.until(lambda: kept <= {each.key for each in cloud.uplinks}, "the rows again")
    for each in cloud.uplinks:
        if each.key in first:
            assert each.key in kept and each.payload == first[each.key].payload
    cloud.acknowledge(*cloud.uplinks)
    cloud.acknowledging = True
    settle(cloud, subject.name, 2)
    cloud.uplinks.clear()
    births = len(cloud.states)
    cloud.restart_broker()
    cloud.until(lambda: len(cloud.states) > births, "a birth after the broker's restart")
    generation = cloud.assign(release)  # anything that comes behind what might have come again
    cloud.until(lambda: "healthy" in cloud.phases(generation), "the next report")
    assert kept.isdisjoint(each.key for each in cloud.uplinks)


def test_a_newer_generation_wins_and_every_assignment_ends_once(
    cloud: Cloud, subjects: Subjects, tmp_path: Path
) -> None:
    releases = [cloud.release(version, tmp_path) for version in (1, 2, 3)]
    subject = subjects.new("newer")
    subject.start()
    born(cloud)
    generations = [cloud.assign(release) for release in releases]
    cloud.until(lambda: "healthy" in cloud.phases(generations[-1]), "the newest")
    for generation in generations:
        phases = cloud.phases(generation)
        ended = [phase for phase in phases if phase in FINAL_PHASES]
        assert len(ended) <= 1 and (not ended or phases[-1] == ended[0])
        going = phases[:-1] if ended else phases
        assert going == WAY[: len(going)]
        assert not ended or ended[0] in ("healthy", "superseded")
    cloud.until(lambda: cloud.states[-1].models[MODEL].version == 3, "its state")


def test_the_same_twin_again_is_no_new_assignment(
    cloud: Cloud, subjects: Subjects, tmp_path: Path
) -> None:
    first, second = (cloud.release(version, tmp_path) for version in (1, 2))
    subject = subjects.new("again")
    subject.start()
    generation = cloud.assign(first)
    cloud.until(lambda: "healthy" in cloud.phases(generation), "healthy")
    cloud.restart_broker()  # the retained twin comes again with the next line
    newer = cloud.assign(second)
    cloud.until(lambda: "healthy" in cloud.phases(newer), "the next version")
    assert cloud.phases(generation) == WAY


def test_unknown_fields_are_tolerated_and_garbage_is_told(
    cloud: Cloud, subjects: Subjects, tmp_path: Path
) -> None:
    release = cloud.release(1, tmp_path)
    subject = subjects.new("unknown")
    subject.start()
    born(cloud)
    cloud.say("ack", b"\xff\xfe")
    cloud.say("desired", b'{"version": "soon"}')
    cloud.until(lambda: cloud.of_kind("event"), "an event about the twin")
    generation = cloud.assign(release, invented={"later": [1, 2]})
    cloud.until(lambda: "healthy" in cloud.phases(generation), "healthy")


def test_commands_are_answered_once_and_a_restart_by_the_next_start(
    cloud: Cloud, subjects: Subjects
) -> None:
    subject = subjects.new("command")
    subject.start()
    boot = born(cloud)
    unknown = command(subject.name, "explode", 1)
    late = command(subject.name, "resend", 2, life_s=-0.5)
    resend = command(subject.name, "resend", 3)
    foreign = command("somebody-else", "resend", 4)
    for each in (foreign, unknown, late, resend, resend):
        cloud.say("command", each.encode())
    cloud.until(lambda: any(a.state == "done" for a in answers(cloud, resend.id)), "done")
    assert [(a.state, a.reason) for a in answers(cloud, unknown.id)] == [
        ("refused", "unknown_command")
    ]
    assert [a.state for a in answers(cloud, late.id)] == ["expired"]
    assert [a.state for a in answers(cloud, resend.id)] == ["accepted", "done"]
    assert answers(cloud, foreign.id) == []
    if subjects.kind == "simulated":  # a real one needs somebody who starts it again
        restart = command(subject.name, "restart", 5)
        cloud.say("command", restart.encode())
        cloud.until(lambda: any(a.state == "done" for a in answers(cloud, restart.id)), "done")
        accepted, done = answers(cloud, restart.id)
        assert accepted.boot == boot != done.boot
        cloud.until(lambda: cloud.states[-1].boot == done.boot, "the birth of the new start")


def test_what_was_said_while_it_was_away_is_heard_when_it_is_back(
    cloud: Cloud, subjects: Subjects
) -> None:
    subject = subjects.new("away")
    subject.start()
    boot = born(cloud)
    subject.crash()
    resend = command(subject.name, "resend", 1)
    cloud.say("command", resend.encode())  # not retained: the broker keeps it for the session
    subject.start()
    cloud.until(lambda: any(a.state == "done" for a in answers(cloud, resend.id)), "done")
    assert answers(cloud, resend.id)[-1].boot != boot
