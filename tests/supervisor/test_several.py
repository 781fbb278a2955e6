"""Several processes of a kind, on PostgreSQL: any may be killed, the rest go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from cloud.settings import Settings
from cloud.supervisor import PROCESS_NAMES, ask, child_commands, holder
from fleet.client.client import Client
from tests.postgres import PostgresServer
from tests.supervisor.test_up import ROOT, eventually


def test_several_of_a_kind_are_numbered(tmp_path: Path) -> None:
    names = list(child_commands(Settings(directory=tmp_path, ingest=2, publishers=3)))
    assert names == [
        "api", "ingest-1", "ingest-2", "delivery", "publisher-1", "publisher-2", "publisher-3",
        "orchestrator", "worker",
    ]  # fmt: skip


def test_each_api_has_a_port_of_its_own(tmp_path: Path) -> None:
    commands = child_commands(Settings(directory=tmp_path, apis=2, api_port=5000))
    ports = [commands[name][commands[name].index("--api-port") + 1] for name in ("api-1", "api-2")]
    assert ports == ["5000", "5001"]


def test_one_of_each_kind_keeps_its_plain_name(tmp_path: Path) -> None:
    assert tuple(child_commands(Settings(directory=tmp_path))) == PROCESS_NAMES


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_of_each_on_postgresql_survive_a_kill_of_any(
    tmp_path: Path, postgres: PostgresServer, free_ports: Callable[[int], list[int]]
) -> None:
    url = postgres.database(migrated=False)
    broker_port, first, *_ = free_ports(2)
    directory = tmp_path / "cp"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "cloud.cli.main", "up", "--dir", str(directory),
            "--api-port", str(first), "--broker-port", str(broker_port), "--ingest", "2",
            "--orchestrators", "2", "--publishers", "2",
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "SKERRY_DATABASE_URL": url},
    )  # fmt: skip
    try:
        eventually(lambda: (directory / "run" / "api.ready").exists(), 120)
        rows = ask(directory, "list")
        assert {"ingest-1", "ingest-2", "orchestrator-2", "publisher-2"} <= {
            row["name"] for row in rows
        }
        pids = [row["pid"] for row in rows if row["name"] in ("ingest-1", "publisher-1")]
        for pid in pids:
            assert isinstance(pid, int)
            os.kill(pid, signal.SIGKILL)
        token = (directory / "tokens" / "admin").read_text().strip()
        with Client(f"http://127.0.0.1:{first}", token) as api:
            eventually(lambda: api.overview().broker_connected)
        scrape = partial(
            httpx.get,
            f"http://127.0.0.1:{first}/metrics",
            headers={"Authorization": f"Bearer {token}"},
        )
        eventually(
            lambda: all(
                f'skerry_process_silent_seconds{{process="{name}"}}' in scrape().text
                for name in ("ingest-1", "ingest-2", "orchestrator-2", "publisher-1")
            )
        )
        eventually(
            lambda: (
                all(row["alive"] for row in ask(directory, "list"))
                and not {row.get("pid") for row in ask(directory, "list")} & set(pids)
            )
        )
        stopped = ask(directory, "stop", "ingest")
        assert [row["alive"] for row in stopped if row.get("kind") == "ingest"] == [False, False]
        assert not (directory / "skerry.db").exists()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert holder(directory) is None
    postgres.drop(url)
