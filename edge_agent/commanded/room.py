"""One thread that takes commands, has them carried out one at a time, and answers.

received → judged → begun → accepted → carried out on a thread of its own → answered

See the package for the rules.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from edge_agent.commanded.errors import CommandError, Failed, Refused
from edge_agent.commanded.journal import CommandJournal
from edge_agent.wire.base import describe, pack_frame
from edge_agent.wire.commands import (
    ARGUMENTS,
    MAX_ATTACHMENT_BYTES,
    MAX_COMMAND_BYTES,
    MAX_LIFE_S,
    MAX_RESULT_BYTES,
    PART_BYTES,
    Arguments,
    Attachment,
    Command,
    CommandName,
    CommandReport,
    MediaType,
    ReportState,
)
from edge_agent.wire.errors import WireError
from edge_agent.wire.ids import is_slug

log = logging.getLogger("skerry.commands")

MAX_WAITING: Final = 32
"""Commands that wait for the one under way; what comes beyond is dropped, and sent again later."""
ANSWER_AGAIN_S: Final = 60.0
"""Pause after the outbox took no answer."""
FAREWELL_S: Final = 10.0
"""Longest wait for the control plane to have a restart's acceptance."""
_MAX_DETAIL_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command.

    Attributes:
        result: small facts for the answer.
        attachment: what is sent beside it; empty is nothing.
    """

    result: Mapping[str, JsonValue] = field(default_factory=dict)
    attachment: bytes = b""
    media_type: MediaType = "text/plain"


def _nothing_against_it(_: Arguments) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Task:
    """How one kind of command is carried out.

    Attributes:
        run: does it; raises `Failed`, or anything, when it cannot be done.
        check: raises `Refused` before anything is begun.
    """

    run: Callable[[Arguments], Outcome]
    check: Callable[[Arguments], None] = _nothing_against_it


class Commander:
    """See the module.  `submit` and `stop` from any thread."""

    def __init__(
        self,
        directory: Path,
        *,
        device_id: str,
        boot: str,
        allowed: Collection[str],
        tasks: Mapping[CommandName, Task],
        restart: Callable[[], None],
        may_restart: Callable[[Arguments], None],
        send: Callable[[bytes], int],
        arrived: Callable[[int], bool],
        now: Callable[[], float],
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Nothing is opened before `run` or the first command.

        Args:
            directory: for the journal; made when needed.
            boot: this start of the agent.
            allowed: names that this device's settings allow.
            tasks: of all commands but "restart".
            restart: ends the agent soon, so that it starts anew.
            may_restart: raises `Refused` while it should not.
            send: journals a frame for the control plane; returns its number, 0 when it was there.
            arrived: whether the frame of a number is committed by the control plane.
            now: seconds since the epoch that have certainly passed.
            wait: pauses for some seconds, True when stopping.
        """
        self._path = directory / "commands.sqlite"
        self._device_id = device_id
        self._boot = boot
        self._allowed = frozenset(allowed)
        self._tasks: dict[str, Task] = {"restart": Task(lambda _: Outcome(), may_restart)}
        self._tasks.update((str(name), task) for name, task in tasks.items())
        self._restart = restart
        self._send = send
        self._arrived = arrived
        self._now = now
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._waiting: deque[bytes] = deque()
        self._opened: CommandJournal | None = None
        self._hanging: threading.Thread | None = None
        self._owed = False
        self._current = ""
        self.counts: dict[str, int] = {}
        """Commands by how they ended; and those that were dropped or repeated."""

    # ── from other threads ───────────────────────────────────────────────────────────────────────

    def submit(self, payload: bytes) -> None:
        """Take a message of the topic; never blocks."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._count("dropped")
                return
            self._waiting.append(payload if len(payload) <= MAX_COMMAND_BYTES else b"")
            self._changed.notify()

    def stop(self) -> None:
        """End `run` soon; what is under way is answered at the next start."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def status(self) -> dict[str, JsonValue]:
        """What goes on, for `/status`."""
        return {
            "under_way": self._current,
            "waiting": len(self._waiting),
            "allowed": [*sorted(self._allowed)],
            "counts": dict(self.counts),
        }

    def journalled(self) -> dict[str, int]:
        """Rows of the journal by state."""
        return self._journal.counts()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Body of the thread, until `stop`."""
        self._guarded(self.recover)
        while not self._stopping.is_set():
            with self._changed:
                if not self._waiting and not self._stopping.is_set():
                    self._changed.wait(ANSWER_AGAIN_S if self._owed else None)
                payload = self._waiting.popleft() if self._waiting else None
            if self._stopping.is_set():
                return
            if payload is None:
                self._guarded(self._send_unsent)
            else:
                self._guarded(partial(self.handle, payload))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            # the disk refuses, most likely; the control plane asks again, or gives up
            log.exception("command.failed_unexpectedly")

    def recover(self) -> None:
        """Answer what the last end of the agent interrupted, and send what was not sent."""
        if self._opened is None and not self._path.exists():
            return
        for begun in self._journal.interrupted():
            if begun.name == "restart":
                result: dict[str, JsonValue] = {"boot_before": begun.boot, "boot": self._boot}
                self._answer(begun.id, "done", detail="the agent has started anew", result=result)
            else:
                detail = "the agent was restarted while it was at it"
                self._answer(begun.id, "failed", "interrupted", detail)
        self._send_unsent()

    # ── one command ──────────────────────────────────────────────────────────────────────────────

    def handle(self, payload: bytes) -> None:
        """Carry out the command in `payload` and answer; one that was begun before is not again.

        Raises:
            sqlite3.Error, OSError: the disk refused to remember it; nothing was done or answered.
        """
        try:
            command = Command.decode(payload, limit=MAX_COMMAND_BYTES)
        except WireError as error:
            self._count("dropped")
            log.warning("command.dropped cause=%s", type(error).__name__)
            return
        if command.device != self._device_id:
            self._count("dropped")
            log.warning("command.dropped device=%s cause=foreign", command.device)
            return
        now = self._now()
        name = command.name if is_slug(command.name) else "?"
        begin = self._journal.begin(command.id, name, self._boot, now, command.expires_at)
        if begin == "known":
            self._count("repeated")
            self._send_unsent()
            return
        if begin == "full":
            self._count("dropped")  # it cannot be answered once and only once
            log.error("command.dropped id=%s cause=journal_full", command.id)
            return
        log.info("command.begun id=%s name=%s", command.id, name)
        try:
            task, arguments = self._judge(command, now)
        except Refused as error:
            expired = error.reason == "expired"
            self._answer(command.id, "expired" if expired else "refused", error.reason, str(error))
            return
        accepted = self._say(command.id, "accepted")
        if command.name == "restart":
            self._go_down(accepted)
            return
        self._current = command.name
        try:
            self._carry_out(command, task, arguments)
        finally:
            self._current = ""

    def _judge(self, command: Command, now: float) -> tuple[Task, Arguments]:
        """What to run, if it may be.

        Raises:
            Refused: it may not.
        """
        if now >= command.expires_at:
            late_s = now - command.expires_at
            raise Refused("expired", f"it expired {late_s:.0f} s ago by this device's time")
        if command.expires_at - command.issued_at > MAX_LIFE_S:
            raise Refused("life_too_long", f"it claims to hold for more than {MAX_LIFE_S:.0f} s")
        known = ARGUMENTS.get(command.name)  # type: ignore[call-overload]
        task = self._tasks.get(command.name)
        if known is None or task is None:
            raise Refused("unknown_command", "this agent has no such command")
        if command.name not in self._allowed:
            raise Refused(
                "not_allowed", f"agent.toml of this device does not allow {command.name!r}"
            )
        try:
            arguments = known.model_validate(command.arguments)
        except ValidationError as error:
            raise Refused("bad_arguments", describe(error)) from error
        if self._hanging is not None and self._hanging.is_alive():
            raise Refused("busy", f"{self._hanging.name} was not done in its time and still runs")
        task.check(arguments)
        return task, arguments

    def _go_down(self, accepted: int) -> None:
        """Restart once the control plane knows that we will; `recover` says that it is done."""
        waited_s = 0.0
        while accepted and not self._arrived(accepted) and waited_s < FAREWELL_S:
            if self._wait(0.1):
                return
            waited_s += 0.1
        self._restart()
        self._stopping.wait()  # nothing further is begun by this start of the agent

    def _carry_out(self, command: Command, task: Task, arguments: Arguments) -> None:
        done: list[Outcome | Exception] = []

        def work() -> None:
            try:
                done.append(task.run(arguments))
            except Exception as error:
                done.append(error)

        thread = threading.Thread(target=work, name=f"command-{command.name}", daemon=True)
        started = time.monotonic()
        thread.start()
        while thread.is_alive() and time.monotonic() - started < command.timeout_s:
            thread.join(min(0.25, command.timeout_s))
            if self._stopping.is_set() and thread.is_alive():
                return  # answered as interrupted at the next start
        if not done:
            self._hanging = thread
            detail = f"not done within {command.timeout_s:g} s"
            self._answer(command.id, "failed", "timed_out", detail)
            return
        [outcome] = done
        if isinstance(outcome, CommandError):
            self._answer(command.id, "failed", outcome.reason, str(outcome))
        elif isinstance(outcome, Exception):
            log.warning("command.failed name=%s cause=%s", command.name, type(outcome).__name__)
            self._answer(command.id, "failed", "failed", f"{type(outcome).__name__}: {outcome}")
        else:
            self._deliver(command.id, outcome)

    def _deliver(self, command: str, outcome: Outcome) -> None:
        try:
            attachment = self._attach(command, outcome)
        except Failed as error:
            self._answer(command, "failed", error.reason, str(error))
            return
        self._answer(command, "done", result=outcome.result, attachment=attachment)

    def _attach(self, command: str, outcome: Outcome) -> Attachment | None:
        """Journal the parts of what is attached.

        Raises:
            Failed: too large, or the journal has no room.
        """
        data = outcome.attachment
        if not data:
            return None
        if len(data) > MAX_ATTACHMENT_BYTES:
            raise Failed("too_large", f"{len(data)} bytes exceed {MAX_ATTACHMENT_BYTES}")
        attachment = Attachment(
            media_type=outcome.media_type,
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            parts=-(-len(data) // PART_BYTES),
        )
        for part in range(attachment.parts):
            piece = data[part * PART_BYTES : (part + 1) * PART_BYTES]
            report = self._report(command, "part", attachment=attachment, part=part)
            try:
                self._send(pack_frame(report, piece))
            except Exception as error:
                raise Failed("journal_full", f"it cannot be journalled: {error}") from error
        return attachment

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    def _say(self, command: str, state: ReportState) -> int:
        """Tell how far the command is; what cannot be told is left out, and 0 returned."""
        try:
            return self._send(pack_frame(self._report(command, state), b""))
        except Exception as error:
            log.warning("command.progress_lost state=%s cause=%s", state, error)
            return 0

    def _answer(
        self,
        command: str,
        state: ReportState,
        reason: str = "",
        detail: str = "",
        result: Mapping[str, JsonValue] | None = None,
        attachment: Attachment | None = None,
    ) -> None:
        """Give the last word on a command."""
        report = self._report(
            command, state, reason, detail, result=result or {}, attachment=attachment
        )
        if len(report.encode()) > MAX_RESULT_BYTES:
            report = self._report(command, "failed", "too_large", "its result is too large")
        self._count(report.state)
        self._journal.answer(command, pack_frame(report, b""))
        log.info(
            "command.ended id=%s state=%s reason=%s", command, report.state, report.reason or "-"
        )
        self._send_unsent()

    def _send_unsent(self) -> None:
        self._owed = True
        for command, frame in self._journal.unreported():
            try:
                self._send(frame)
            except Exception as error:
                log.warning("command.answer_waits id=%s cause=%s", command, error)
                return
            self._journal.reported(command)
        self._owed = False

    def _report(
        self,
        command: str,
        state: ReportState,
        reason: str = "",
        detail: str = "",
        *,
        result: Mapping[str, JsonValue] | None = None,
        attachment: Attachment | None = None,
        part: int = 0,
    ) -> CommandReport:
        return CommandReport(
            command=command,
            state=state,
            reason=reason[:64],
            detail=" ".join(detail.split())[:_MAX_DETAIL_CHARS],
            result=dict(result or {}),
            boot=self._boot,
            attachment=attachment,
            part=part,
            at=self._now(),
        )

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def _journal(self) -> CommandJournal:
        if self._opened is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._opened = CommandJournal(self._path)
        return self._opened
