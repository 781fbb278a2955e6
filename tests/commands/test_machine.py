"""How far a command is, by what happens to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.wire.commands import FINAL_REPORTS
from fleet.commands import machine
from fleet.commands.errors import CommandEnded
from fleet.commands.machine import GRACE_S, RESEND_FIRST_S, CommandState, Course

NEW = Course(expires_at=1000.0, timeout_s=100.0)


def test_it_waits_for_the_device_to_be_online():
    assert not machine.due(NEW, 10.0, online=False)
    assert machine.due(NEW, 10.0, online=True)


def test_it_is_never_sent_at_or_after_its_expiry():
    assert not machine.due(NEW, 1000.0, online=True)


def test_it_is_sent_again_with_growing_pauses_until_the_device_answers():
    once = machine.sent(NEW, 10.0)
    assert not machine.due(once, 10.0 + RESEND_FIRST_S - 1, online=True)
    assert machine.due(once, 10.0 + RESEND_FIRST_S, online=True)
    twice = machine.sent(once, 40.0)
    assert not machine.due(twice, 40.0 + RESEND_FIRST_S, online=True)
    assert machine.due(twice, 40.0 + 2 * RESEND_FIRST_S, online=True)
    accepted = machine.reported(twice, "accepted", 41.0)
    assert not machine.due(accepted, 900.0, online=True)


def test_what_was_never_sent_expires_on_the_second_and_what_was_has_a_grace():
    assert machine.passed(NEW, 999.0).state is CommandState.QUEUED
    assert machine.passed(NEW, 1000.0).reason == "not_delivered"
    on_its_way = machine.sent(NEW, 10.0)
    assert machine.passed(on_its_way, 1000.0 + GRACE_S - 1).state is CommandState.SENT
    gone = machine.passed(on_its_way, 1000.0 + GRACE_S)
    assert (gone.state, gone.reason, gone.certain) == (
        CommandState.EXPIRED,
        "not_answered",
        False,
    )


def test_what_is_accepted_has_its_time_from_then_on_and_no_expiry_any_more():
    accepted = machine.reported(machine.sent(NEW, 990.0), "accepted", 999.0)
    assert machine.passed(accepted, 999.0 + 100.0 + GRACE_S - 1).state is CommandState.ACCEPTED
    gone = machine.passed(accepted, 999.0 + 100.0 + GRACE_S)
    assert (gone.state, gone.reason) == (CommandState.TIMED_OUT, "no_answer")


@pytest.mark.parametrize("word", sorted(FINAL_REPORTS))
def test_a_late_last_word_corrects_what_was_only_concluded(word):
    for concluded in (
        machine.passed(machine.sent(NEW, 1.0), 5000.0),
        machine.passed(machine.reported(NEW, "accepted", 1.0), 5000.0),
        machine.cancelled(machine.sent(NEW, 1.0), 2.0, "ann"),
    ):
        corrected = machine.reported(concluded, word, 6000.0, "r", "d")
        assert (corrected.state.value, corrected.certain, corrected.reason) == (word, True, "r")


def test_a_late_acceptance_reopens_what_expired_and_gives_it_its_time():
    expired = machine.passed(machine.sent(NEW, 1.0), 5000.0)
    accepted = machine.reported(expired, "accepted", 5001.0)
    assert (accepted.state, accepted.ended_at) == (CommandState.ACCEPTED, None)
    assert machine.passed(accepted, 5100.0).state is CommandState.ACCEPTED


def test_a_repeated_acceptance_does_not_revive_what_timed_out():
    gone = machine.passed(machine.reported(NEW, "accepted", 1.0), 5000.0)
    assert machine.reported(gone, "accepted", 5001.0) == gone


def test_what_the_device_is_at_or_has_ended_cannot_be_taken_back():
    with pytest.raises(CommandEnded, match="is at it"):
        machine.cancelled(machine.reported(NEW, "accepted", 1.0), 2.0, "ann")
    with pytest.raises(CommandEnded, match="already: done"):
        machine.cancelled(machine.reported(NEW, "done", 1.0), 2.0, "ann")


def test_taking_back_what_was_sent_says_that_it_may_be_done():
    assert "may do it" not in machine.cancelled(NEW, 2.0, "ann").detail
    assert "may do it" in machine.cancelled(machine.sent(NEW, 1.0), 2.0, "ann").detail


_HAPPENINGS = st.lists(
    st.sampled_from(["sent", "accepted", "part", "done", "failed", "refused", "expired", "time"]),
    max_size=12,
)


@given(_HAPPENINGS)
def test_nothing_changes_after_the_devices_last_word(happenings):
    course, now, last = NEW, 0.0, None
    for happening in happenings:
        now += 300.0
        before = course
        if happening == "sent":
            course = machine.sent(course, now)
        elif happening == "time":
            course = machine.passed(course, now)
        else:
            course = machine.reported(course, happening, now)
            if happening in FINAL_REPORTS and last is None:
                last = happening
        if before.certain:
            assert course == before
        assert course.ended == (course.ended_at is not None)
    assert course.certain == (last is not None)
    if last is not None:
        assert course.state.value == last
