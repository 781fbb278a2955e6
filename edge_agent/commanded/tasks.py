"""What each command does on this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from edge_agent.commanded import diagnostics
from edge_agent.commanded.errors import Refused
from edge_agent.commanded.overrides import Overrides
from edge_agent.commanded.room import Outcome, Task
from edge_agent.commanded.tail import LogTail
from edge_agent.wire.commands import (
    MAX_LOG_BYTES,
    MAX_LOG_LINES,
    Arguments,
    CommandName,
    LogsArguments,
    RestartArguments,
    SamplingArguments,
)

Json = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the tasks look; the agent's own views.

    Attributes:
        directory: of the agent.
        status: as `/status` has it.
        settings: every key of agent.toml as it holds.
        metrics: Prometheus text of serving.
        inventory: found anew.
        updating: phase of the update under way, or of a version on probation; empty is none.
        resend: publishes the whole state and journals the metrics; what could be sent.
    """

    directory: Path
    status: Callable[[], Json]
    settings: Callable[[], Mapping[str, JsonValue]]
    metrics: Callable[[], str]
    inventory: Callable[[], Json]
    updating: Callable[[], str]
    resend: Callable[[], Json]


def tasks(
    sources: Sources, tail: LogTail, overrides: Overrides, journals: Callable[[], Json]
) -> dict[CommandName, Task]:
    """Every command but "restart".

    Args:
        journals: rows that wait in each journal, by kind or state.
    """

    def logs(arguments: Arguments) -> Outcome:
        asked = cast(LogsArguments, arguments)
        text = tail.last(asked.lines, MAX_LOG_BYTES)
        return Outcome({"lines": text.count(b"\n"), "bytes": len(text)}, text)

    def pack(_: Arguments) -> Outcome:
        data = diagnostics.pack(
            {
                "status.json": lambda: diagnostics.as_json(sources.status()),
                "settings.json": lambda: diagnostics.as_json(
                    diagnostics.settings(sources.settings())
                ),
                "inventory.json": lambda: diagnostics.as_json(sources.inventory()),
                "journals.json": lambda: diagnostics.as_json(journals()),
                "sampling.json": lambda: diagnostics.as_json(overrides.status()),
                "disk.json": lambda: diagnostics.as_json(diagnostics.disk(sources.directory)),
                "process.json": lambda: diagnostics.as_json(diagnostics.process()),
                "metrics.txt": lambda: sources.metrics().encode(),
                "threads.txt": diagnostics.threads,
                "log.txt": lambda: tail.last(MAX_LOG_LINES, diagnostics.MAX_MEMBER_BYTES),
            }
        )
        return Outcome({"bytes": len(data)}, data, "application/zip")

    def sampling(arguments: Arguments) -> Outcome:
        return Outcome(overrides.set(cast(SamplingArguments, arguments)))

    return {
        "logs": Task(logs),
        "diagnostics": Task(pack),
        "sampling": Task(sampling),
        "resend": Task(lambda _: Outcome(sources.resend())),
    }


def may_restart(updating: Callable[[], str]) -> Callable[[Arguments], None]:
    """Refuses a restart while an update is under way, unless it was asked for all the same.

    An update survives it either way; a probation would begin anew, and serving pause in it.
    """

    def check(arguments: Arguments) -> None:
        phase = updating()
        if phase and not cast(RestartArguments, arguments).during_update:
            raise Refused("updating", f"an update is under way ({phase}); ask again after it")

    return check
