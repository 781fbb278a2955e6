"""What becomes of a command on a device: done once, within its bounds, and always answered."""

from __future__ import annotations

import hashlib
import threading

import pytest

from edge_agent.commanded.errors import Failed, Refused
from edge_agent.commanded.journal import KEPT, MAX_ROWS, CommandJournal
from edge_agent.commanded.room import MAX_WAITING, Outcome
from edge_agent.wire.commands import MAX_LIFE_S, PART_BYTES, LogsArguments
from tests.commanded.conftest import NOW, command


def test_a_command_is_accepted_done_and_answered(desk):
    desk.outcome = lambda: Outcome({"lines": 3})
    desk.open().handle(command(arguments={"lines": 3}))
    assert desk.states() == ["accepted", "done"]
    assert desk.did == [LogsArguments(lines=3)]
    assert (desk.last().result, desk.last().boot) == ({"lines": 3}, "boot-1")


def test_the_same_id_is_done_once_over_restarts_too(desk):
    desk.open().handle(command())
    first = list(desk.said)
    again = desk.open()
    again.recover()
    again.handle(command())
    assert (len(desk.did), desk.said) == (1, first)


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({"expires_at": NOW}, "expired", "expired"),
        ({"issued_at": NOW - MAX_LIFE_S}, "refused", "life_too_long"),
        ({"name": "format-disk"}, "refused", "unknown_command"),
        ({"name": "../../x"}, "refused", "unknown_command"),
        ({"arguments": {"lines": 0}}, "refused", "bad_arguments"),
        ({"arguments": {"lines": 5, "follow": True}}, "refused", "bad_arguments"),
        ({"name": "sampling", "arguments": {"model": "m", "for_s": 9}}, "refused", "bad_arguments"),
        (
            {"name": "sampling", "arguments": {"model": "m", "for_s": 9, "uniform_rate": 1.1}},
            "refused",
            "bad_arguments",
        ),
    ],
)
def test_what_must_not_be_done_is_refused_with_a_reason_and_nothing_is_begun(
    desk, fields, state, reason
):
    desk.open().handle(command(**fields))
    assert (desk.states(), desk.last().reason, desk.did) == ([state], reason, [])


def test_a_command_that_the_settings_leave_out_is_refused(desk):
    desk.allowed = ("resend",)
    desk.open().handle(command())
    assert (desk.states(), desk.last().reason, desk.did) == (["refused"], "not_allowed", [])


def test_the_expiry_is_judged_by_the_time_that_has_certainly_passed(desk):
    desk.now = NOW + 61  # attested, whatever the clock says
    desk.open().handle(command())
    assert desk.states() == ["expired"]


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"\xff" * 100, command(device="cam-2"), command() + b" " * 9000],
    ids=["empty", "cut", "list", "garbage", "foreign", "giant"],
)
def test_what_is_no_command_of_this_device_is_dropped_and_counted(desk, payload):
    commander = desk.open()
    commander.submit(payload)
    commander.handle(commander._waiting.popleft())
    assert (desk.said, desk.did, commander.counts) == ([], [], {"dropped": 1})


def test_what_fails_says_why_and_ends_nothing_else(desk):
    def fails():
        raise Failed("disk_refused", "no room")

    desk.outcome = fails
    commander = desk.open()
    commander.handle(command())
    assert (desk.last().state, desk.last().reason) == ("failed", "disk_refused")
    desk.outcome = lambda: 1 / 0
    commander.handle(command(id_="c2"))
    assert (desk.last().state, desk.last().reason) == ("failed", "failed")
    desk.outcome = Outcome
    commander.handle(command(id_="c3"))
    assert desk.last().state == "done"


def test_what_hangs_is_answered_in_its_time_and_others_are_refused_while_it_does(desk, gate):
    desk.outcome = lambda: Outcome({"opened": gate.wait(30)})
    commander = desk.open()
    commander.handle(command(timeout_s=0.05))
    assert (desk.last().state, desk.last().reason) == ("failed", "timed_out")
    commander.handle(command(id_="c2"))
    assert (desk.last().state, desk.last().reason) == ("refused", "busy")
    gate.set()
    commander._hanging.join(10)
    commander.handle(command(id_="c3"))
    assert desk.last().state == "done"


def test_an_attachment_comes_in_parts_before_the_last_word(desk):
    data = bytes(range(256)) * 600
    desk.outcome = lambda: Outcome(attachment=data, media_type="application/zip")
    desk.open().handle(command())
    assert desk.states() == ["accepted", "part", "part", "part", "done"]
    parts = [payload for report, payload in desk.said if report.state == "part"]
    assert b"".join(parts) == data
    assert [len(part) for part in parts[:-1]] == [PART_BYTES, PART_BYTES]
    attachment = desk.last().attachment
    assert (attachment.parts, attachment.length) == (3, len(data))
    assert attachment.sha256 == hashlib.sha256(data).hexdigest()


def test_an_attachment_that_is_too_large_is_not_sent(desk):
    desk.outcome = lambda: Outcome(attachment=b"x" * ((4 << 20) + 1))
    desk.open().handle(command())
    assert (desk.states(), desk.last().reason) == (["accepted", "failed"], "too_large")


def test_a_result_that_is_too_large_is_a_failure(desk):
    desk.outcome = lambda: Outcome({"much": "x" * 9000})
    desk.open().handle(command())
    assert (desk.last().state, desk.last().reason) == ("failed", "too_large")


def test_an_answer_that_the_journal_did_not_take_is_given_later(desk):
    desk.full = True
    commander = desk.open()
    commander.handle(command())
    assert desk.said == []
    desk.full = False
    again = desk.open()
    again.recover()
    assert desk.states() == ["done"]
    again.recover()
    assert desk.states() == ["done"]


# ── restart ──────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_is_accepted_first_and_done_by_the_next_start(desk):
    desk.open().handle(command("restart"))
    assert (desk.states(), desk.restarts) == (["accepted"], 1)
    desk.boot = "boot-2"
    desk.open().recover()
    assert desk.last().state == "done"
    assert desk.last().result == {"boot_before": "boot-1", "boot": "boot-2"}


def test_the_id_of_a_restart_does_not_restart_twice(desk):
    desk.open().handle(command("restart"))
    desk.boot = "boot-2"
    again = desk.open()
    again.recover()
    again.handle(command("restart"))
    assert (desk.restarts, desk.states()) == (1, ["accepted", "done"])


def test_a_restart_is_refused_while_it_would_disturb_an_update(desk):
    def refuse(_):
        raise Refused("updating", "an update is under way (probation)")

    desk.may_restart = refuse
    desk.open().handle(command("restart"))
    assert (desk.states(), desk.last().reason, desk.restarts) == (["refused"], "updating", 0)


def test_what_the_agents_end_interrupts_is_answered_at_the_next_start(desk, gate):
    entered = threading.Event()

    def hangs():
        entered.set()
        gate.wait(30)
        return Outcome()

    desk.outcome = hangs
    commander = desk.open()
    thread = threading.Thread(target=commander.run)
    thread.start()
    commander.submit(command(timeout_s=60.0))
    assert entered.wait(10)
    commander.stop()
    thread.join(10)
    assert not thread.is_alive()
    gate.set()
    desk.open().recover()
    assert (desk.last().state, desk.last().reason) == ("failed", "interrupted")


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def test_commands_beyond_the_bound_are_dropped_and_not_kept_in_memory(desk):
    commander = desk.open()
    for number in range(MAX_WAITING + 5):
        commander.submit(command(id_=f"c{number}"))
    assert len(commander._waiting) == MAX_WAITING
    assert commander.counts == {"dropped": 5}


def test_the_journal_forgets_what_expired_long_ago_and_nothing_that_could_come_again(tmp_path):
    journal = CommandJournal(tmp_path / "commands.sqlite")
    for number in range(KEPT + 50):
        expires_at = NOW + 1e6 if number == 0 else NOW - 1
        journal.begin(f"c{number}", "logs", "b", NOW + number, expires_at)
        journal.answer(f"c{number}", b"")
        journal.reported(f"c{number}")
    assert journal.counts() == {"reported": KEPT + 1}
    assert journal.begin("c0", "logs", "b", NOW + 1e4, NOW + 1e6) == "known"
    journal.close()


def test_a_journal_full_of_what_could_come_again_takes_no_more(tmp_path):
    journal = CommandJournal(tmp_path / "commands.sqlite")
    for number in range(MAX_ROWS):
        journal._database.execute(
            "INSERT INTO commands VALUES (?, 'logs', 'b', ?, ?, 'reported', NULL)",
            (f"c{number}", NOW, NOW + 60),
        )
    assert journal.begin("one-more", "logs", "b", NOW, NOW + 60) == "full"
    assert journal.begin("one-more", "logs", "b", NOW + 61, NOW + 90) == "begun"
    journal.close()
