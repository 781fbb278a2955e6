"""A commander on a directory, whose answers go into a list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.commanded.room import Commander, Outcome, Task
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.commands import COMMAND_NAMES, Arguments, Command, CommandReport

NOW = 1_700_000_000.0


def command(name: str = "logs", id_: str = "c1", **fields: object) -> bytes:
    told = {
        "id": id_, "device": "cam-1", "name": name, "issued_at": NOW - 10, "expires_at": NOW + 60,
        "timeout_s": 5.0, **fields,
    }  # fmt: skip
    return Command.model_validate(told).encode()


@dataclass
class Desk:
    """What a commander needs, and what it said."""

    directory: Path
    boot: str = "boot-1"
    allowed: tuple[str, ...] = COMMAND_NAMES
    now: float = NOW
    did: list[Arguments] = field(default_factory=list)
    said: list[tuple[CommandReport, bytes]] = field(default_factory=list)
    restarts: int = 0
    full: bool = False
    outcome: Callable[[], Outcome] = Outcome
    may_restart: Callable[[Arguments], None] = lambda _: None

    def open(self) -> Commander:
        def send(frame: bytes) -> int:
            if self.full:
                raise OSError("the journal is full")
            report, payload = unpack_frame(frame, CommandReport)
            self.said.append((report, bytes(payload)))
            return len(self.said)

        def run(arguments: Arguments) -> Outcome:
            self.did.append(arguments)
            return self.outcome()

        def restart() -> None:
            self.restarts += 1
            commander.stop()

        commander = Commander(
            self.directory,
            device_id="cam-1",
            boot=self.boot,
            allowed=self.allowed,
            tasks={
                name: Task(run) for name in ("logs", "diagnostics", "sampling", "resend")
            },
            restart=restart,
            may_restart=lambda arguments: self.may_restart(arguments),
            send=send,
            arrived=lambda seq: True,
            now=lambda: self.now,
        )  # fmt: skip
        return commander

    def states(self) -> list[str]:
        return [report.state for report, _ in self.said]

    def last(self) -> CommandReport:
        return self.said[-1][0]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def gate():
    """An event that is set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()
