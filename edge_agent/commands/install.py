"""`skerry-agent install`: from a directory that 'skerry export-bundle' wrote.

Where the agent runs, it installs; else it is done here, and the next start of the agent serves what
was installed and watches it then.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import JsonValue

from edge_agent.commands import admin
from edge_agent.commands.errors import BadSource, CommandRefused, NotInstalled
from edge_agent.commands.output import Bar, say
from edge_agent.device.config import AgentSettings, load_settings
from edge_agent.device.directory import held
from edge_agent.device.errors import AgentRunning, DeviceError
from edge_agent.device.identity import Identity, load_identity
from edge_agent.device.trusted import open_trust
from edge_agent.link.errors import LinkError
from edge_agent.link.outbox import Outbox
from edge_agent.update.by_hand import ByHand
from edge_agent.update.errors import BadMedium
from edge_agent.update.install import Progress
from edge_agent.update.journal import Journal
from edge_agent.update.ports import TransferError
from edge_agent.update.store import SlotStore
from edge_agent.update.trust import Assigned
from edge_agent.update.updater import Updater
from edge_agent.wire.messages import DeviceEvent, UpdateReport

POLL_S: Final = 0.2
_DONE: Final = {
    "healthy": "serves",
    "probation": "is installed; the agent serves it from its next start on",
}


def install(directory: Path, source: Path) -> int:
    """Install what `source` holds for the device in `directory`.

    Raises:
        BadSource: it is no complete export for this device, or a broken one.
        NotInstalled: something is refused, failed, or must wait.
        DeviceError: the device cannot install.
    """
    settings = load_settings(directory)
    identity = load_identity(directory)
    source = source.absolute()  # the agent has a working directory of its own
    bar = Bar()
    try:
        with held(directory):
            shown = _here(identity, settings, source, bar)
    except AgentRunning:
        shown = _by_the_agent(directory, source, bar)
    finally:
        bar.clear()
    return _tell(shown)


def _here(identity: Identity, settings: AgentSettings, source: Path, bar: Bar) -> Mapping[str, Any]:
    """Install in this process; the directory is held."""
    logging.getLogger().addHandler(logging.NullHandler())  # a person gets one line, and no log
    try:
        with _opened(identity, settings) as (updater, by_hand):
            try:
                by_hand.start(source)
                return _watched(lambda: by_hand.status() or {}, bar)
            finally:
                updater.stop()
                by_hand.join(60.0)
    except BadMedium as error:
        raise BadSource(str(error)) from error
    except LinkError as error:
        raise DeviceError(str(error)) from error
    except sqlite3.DatabaseError as error:
        raise DeviceError(
            f"{identity.directory}: a database of the agent is damaged ({error})"
        ) from error


@contextlib.contextmanager
def _opened(identity: Identity, settings: AgentSettings) -> Iterator[tuple[Updater, ByHand]]:
    """An updater that serves nothing and leaves every probation to the agent."""
    directory = identity.directory / "update"
    with contextlib.ExitStack() as stack:
        outbox = Outbox(identity.directory / "outbox.db", settings.outbox_max_bytes)
        stack.callback(outbox.close)
        store = SlotStore(directory, quota_bytes=settings.update_quota_mib << 20)
        stack.callback(store.close)
        journal = Journal(directory / "journal.sqlite")
        stack.callback(journal.close)
        trust = open_trust(identity, _no_line)
        stack.callback(trust.close)

        def report(made: UpdateReport) -> None:
            outbox.append("report", made.encode())

        def event(name: str, fields: Mapping[str, JsonValue]) -> None:
            told = DeviceEvent(name=name, fields=dict(fields), at=time.time())
            outbox.append("event", told.encode())

        updater = Updater(
            store=store,
            trust=trust,
            obtain=_no_source,
            journal=journal,
            activate=lambda model, path: None,
            report=report,
            health=lambda model: None,
            wait=lambda seconds: True,
        )
        yield (
            updater,
            ByHand(
                device_id=identity.membership.device_id,
                directory=directory,
                updater=updater,
                store=store,
                open_trust=lambda fetch: open_trust(identity, fetch),
                event=event,
                memory_bytes=settings.update_memory_mib << 20,
            ),
        )


def _no_line(path: str) -> bytes:
    raise TransferError(f"{path}: there is no line here")


def _no_source(assigned: Assigned, progress: Progress, interrupted: Callable[[], bool]) -> NoReturn:
    raise TransferError(f"{assigned.target}: there is no line here")


def _by_the_agent(directory: Path, source: Path, bar: Bar) -> Mapping[str, Any]:
    """Have the running agent install."""
    try:
        admin.order(directory, "install", {"directory": str(source)})
    except CommandRefused as error:
        if str(source) in str(error):
            raise BadSource(str(error)) from error
        raise
    return _watched(lambda: admin.status(directory).get("install") or {}, bar)


def _watched(look: Callable[[], Mapping[str, Any]], bar: Bar) -> Mapping[str, Any]:
    """What an install came to; shows how far it is meanwhile."""
    while True:
        shown = look()
        if not shown.get("running"):
            return shown
        bar.show(f"installing from {shown['from']}: {shown['read_bytes'] / 2**20:.1f} MiB read")
        time.sleep(POLL_S)


def _tell(shown: Mapping[str, Any]) -> int:
    refusal = shown.get("refusal")
    if refusal:
        line = f"{refusal['reason']}: {refusal['detail']}"
        raise BadSource(line) if refusal["reason"] == BadMedium.reason else NotInstalled(line)
    failed = []
    for result in shown.get("results", []):
        name = f"{result['model']} {result['version']}"
        if result["phase"] in _DONE:
            say(f"{name} {_DONE[result['phase']]}")
        else:
            failed.append((result["reason"], f"{name}: {result['reason']}: {result['detail']}"))
    if not failed:
        return 0
    line = "; ".join(text for _, text in failed)
    if all(reason == BadMedium.reason for reason, _ in failed):
        raise BadSource(line)
    raise NotInstalled(line)
