"""What the agent has of this room: commands, overrides and the log's tail, opened together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final, Protocol

from pydantic import JsonValue

from edge_agent.commanded.overrides import Overrides, Sampler
from edge_agent.commanded.room import Commander
from edge_agent.commanded.tail import LogTail
from edge_agent.commanded.tasks import Sources, may_restart, tasks
from edge_agent.wire.topics import UplinkKind

log = logging.getLogger("skerry.commands")

LOGGER: Final = "skerry"
"""Every event of the agent goes through it; what libraries log is not sent anywhere."""


class Outbox(Protocol):
    """The part of `edge_agent.link.outbox.Outbox` that is needed."""

    def append(self, kind: UplinkKind, payload: bytes) -> int: ...

    def waits(self, seq: int) -> bool: ...

    def counts(self) -> dict[str, int]: ...


class CommandDesk:
    """See the module.  `submit`, `stop` and `status` from any thread."""

    def __init__(
        self,
        sources: Sources,
        *,
        device_id: str,
        boot: str,
        allowed: Collection[str],
        outbox: Outbox,
        sampler: Sampler,
        restart: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        """Nothing is opened before `open`, but the log's tail is read.

        Args:
            boot: this start of the agent.
            allowed: names that this device's settings allow.
            restart: ends the agent soon, so that it starts anew.
            now: seconds since the epoch that have certainly passed.
        """
        directory = sources.directory / "commands"
        self._outbox = outbox
        self._tail = LogTail(sources.directory / "run" / "log.tail")
        self._overrides = Overrides(directory / "sampling.json", sampler, now)
        self._commander = Commander(
            directory,
            device_id=device_id,
            boot=boot,
            allowed=allowed,
            tasks=tasks(sources, self._tail, self._overrides, self._journals),
            restart=restart,
            may_restart=may_restart(sources.updating),
            send=lambda frame: outbox.append("command", frame),
            arrived=lambda seq: not outbox.waits(seq),
            now=now,
        )
        self.submit = self._commander.submit
        self.run = self._commander.run
        self.stop = self._commander.stop

    def open(self) -> None:
        """Keep what is logged from here on, and go on with overrides of earlier starts."""
        logging.getLogger(LOGGER).addHandler(self._tail)
        try:
            self._overrides.restore()
        except Exception:
            log.exception("override.not_restored")  # it ends early; serving counts for more

    def close(self) -> None:
        logging.getLogger(LOGGER).removeHandler(self._tail)
        self._tail.save()
        self._commander.close()

    def status(self) -> dict[str, JsonValue]:
        """The `commands` block of `/status`."""
        return {**self._commander.status(), "sampling": self._overrides.status()}

    def _journals(self) -> dict[str, JsonValue]:
        return {"outbox": {**self._outbox.counts()}, "commands": {**self._commander.journalled()}}
