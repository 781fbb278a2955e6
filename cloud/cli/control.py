"""`skerry up`, `down`, `run`, `processes`: the control plane's own processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption
from cloud.cli.output import console, table
from cloud.errors import OperatorError
from cloud.settings import Settings

STOP_TIMEOUT_S = 60.0

HostOption = Annotated[
    str, typer.Option(help="Address to bind; loopback by default.", envvar="SKERRY_HOST")
]
ApiPortOption = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of API and console.", envvar="SKERRY_API_PORT")
]
BrokerPortOption = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of the broker.", envvar="SKERRY_BROKER_PORT")
]
DatabaseOption = Annotated[
    str,
    typer.Option(
        help="PostgreSQL, as in postgresql://user@host/skerry; SQLite in DIR when left out.",
        envvar="SKERRY_DATABASE_URL",
    ),
]


def _settings(directory: Path, host: str, api_port: int, broker_port: int) -> Settings:
    return Settings(
        directory=directory.resolve(), host=host, api_port=api_port, broker_port=broker_port
    )


def up(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    host: HostOption = "127.0.0.1",
    api_port: ApiPortOption = 8090,
    broker_port: BrokerPortOption = 8883,
    database_url: DatabaseOption = "",
    apis: Annotated[int, typer.Option(min=1, max=8, envvar="SKERRY_APIS")] = 1,
    ingest: Annotated[int, typer.Option(min=1, max=32, envvar="SKERRY_INGEST")] = 1,
    orchestrators: Annotated[int, typer.Option(min=1, max=8, envvar="SKERRY_ORCHESTRATORS")] = 1,
    publishers: Annotated[int, typer.Option(min=1, max=8, envvar="SKERRY_PUBLISHERS")] = 1,
) -> None:
    """Start the whole control plane and stay in the foreground until Ctrl-C.

    --apis, --ingest, --orchestrators and --publishers say how many processes there are of a kind.
    """
    from cloud.app import start_control_plane  # the rooms are imported by this command alone

    if database_url:  # for the processes too; not by their command lines, which everybody can read
        os.environ["SKERRY_DATABASE_URL"] = database_url
    settings = _settings(directory, host, api_port, broker_port).model_copy(
        update={
            "apis": apis,
            "ingest": ingest,
            "orchestrators": orchestrators,
            "publishers": publishers,
        }
    )

    def ready() -> None:
        token = (settings.directory / "tokens" / "admin").read_text().strip()
        # not in a box: a terminal must be able to select the address whole
        console.rule("[bold]Skerry is up[/bold]", align="left")
        for what, value in (
            ("console", f"{settings.api_url}/?token={token}"),
            ("API", f"{settings.api_url}/v1"),
            ("broker", f"mqtts://{settings.host}:{settings.broker_port}"),
            ("data", str(settings.directory)),
        ):
            console.print(f"{what:8} {value}", soft_wrap=True, highlight=False)
        console.print("Ctrl-C stops it")

    start_control_plane(settings, ready)


def run(
    name: Annotated[
        str, typer.Argument(help="api, ingest, delivery, publisher, orchestrator or worker")
    ],
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    host: HostOption = "127.0.0.1",
    api_port: ApiPortOption = 8090,
    broker_port: BrokerPortOption = 8883,
) -> None:
    """Run one process of the control plane in the foreground."""
    from cloud.app import run_process

    run_process(name, _settings(directory, host, api_port, broker_port))


def down(directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Stop the control plane that holds a directory."""
    from cloud.supervisor import holder

    pid = holder(directory)
    if pid is None:
        console.print(f"nothing runs in {directory}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while holder(directory) is not None:
        if time.monotonic() > deadline:
            raise OperatorError(f"process {pid} has not stopped after {STOP_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
    console.print(f"stopped {directory}")


def processes(
    verb: Annotated[str, typer.Argument(help="list, stop, start or restart")] = "list",
    name: Annotated[str, typer.Argument(help="broker, api, ingest, …")] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List, stop, start or restart single processes of a running control plane."""
    from cloud.supervisor import ask

    rows = ask(directory, verb, name)
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table(
        "processes",
        ("name", "state", "pid", "restarts"),
        [
            (r["name"], "running" if r["alive"] else "stopped", r.get("pid") or "–",
             r.get("restarts", "–"))
            for r in rows
        ],
    )  # fmt: skip
