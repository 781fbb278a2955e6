"""The benchmark's own servers, as real processes: they answer, swap, are weighed, and end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench.loads import measure, networks, run, witness
from bench.loads.errors import ServerFailed
from bench.loads.networks import TINY, Bundle
from bench.loads.processes import ServerProcess, started
from bench.loads.requests import KINDS, Kind, infer

Running = tuple[ServerProcess, int]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    place = tmp_path_factory.mktemp("bundles")
    return (networks.write(place / "1", TINY, 1), networks.write(place / "2", TINY, 2))


@pytest.fixture(scope="module")
def agent(
    bundles: tuple[Bundle, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with run.agent(bundles, tmp_path_factory.mktemp("agent")) as (server, port, start):
        assert start.import_seconds > 0 and start.start_seconds > 0
        yield server, port


def test_versions_answer_differently(bundles: tuple[Bundle, Bundle]) -> None:
    assert not witness.matches(bundles[0].answer, bundles[1].answer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_agent_answers_each_kind_within_a_deadline(
    agent: Running, bundles: tuple[Bundle, Bundle], kind: Kind
) -> None:
    request = infer(TINY, kind, timeout_us=20_000_000)
    measure.require_right(agent[1], request, bundles[0].answer)


def test_a_wrong_answer_is_noticed(agent: Running, bundles: tuple[Bundle, Bundle]) -> None:
    with pytest.raises(ServerFailed, match="a wrong answer"):
        measure.require_right(agent[1], infer(TINY, "json"), bundles[1].answer)


def test_the_witness_tells_versions_apart(agent: Running, bundles: tuple[Bundle, Bundle]) -> None:
    port, request = agent[1], infer(TINY, "binary")
    right = {"1": bundles[0].answer, "2": bundles[1].answer}
    seen = witness.watch(port, request, right, connections=2, seconds=0.2)
    assert seen.faults == 0 and seen.versions["1"] > 0 and seen.versions["2"] == 0
    wrong = {"1": bundles[1].answer}
    seen = witness.watch(port, request, wrong, connections=2, seconds=0.2)
    assert seen.wrong > 0 and not seen.versions
    assert seen.first_fault == "not the answer of version '1'"


def test_a_refusal_is_a_fault(agent: Running) -> None:
    request = infer(networks.MLP, "binary")  # a model that is not served
    seen = witness.watch(agent[1], request, {}, connections=1, seconds=0.1)
    assert seen.refused > 0 and seen.first_fault.startswith("404")


def test_the_agent_swaps_on_command(agent: Running, bundles: tuple[Bundle, Bundle]) -> None:
    server, port = agent
    server.tell({"swap_hz": 10, "seconds": 0.5})
    expected = {str(each.version): each.answer for each in bundles}
    seen = witness.watch(port, infer(TINY, "binary"), expected, connections=2, seconds=0.5)
    swaps = server.hear(20)["swaps"]
    assert isinstance(swaps, int) and swaps >= 2
    assert seen.faults == 0 and set(seen.versions) == {"1", "2"}


def test_batches_are_read_from_the_agents_metrics(agent: Running) -> None:
    items, batches = measure.batch_counts(agent[1])
    assert items >= batches > 0


def test_time_and_memory_are_those_of_the_whole_tree() -> None:
    children = (
        "import subprocess, sys, time\n"
        "spin = 'import time\\nend = time.process_time() + 0.3\\n"
        "while time.process_time() < end: pass\\nprint(1, flush=True)\\ntime.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', spin], stdout=subprocess.PIPE,"
        " start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print('{}', flush=True)\n"
        "time.sleep(60)\n"
    )
    with started("tree", [sys.executable, "-c", children], talks=True) as server:
        server.hear(30)
        tree = server.tree()
        assert len(tree) == 2
        assert server.cpu_s() >= 0.29 and server.scheduled_s() >= 0.29
        assert server.pss_mb() > 5
    assert not any(psutil.pid_exists(each.pid) for each in tree)


def test_a_daemon_that_left_its_parent_still_belongs_to_the_server() -> None:
    daemon = (
        "import os, subprocess, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    print('{}', flush=True)\n"
        "    time.sleep(60)\n"
        "os.wait()\n"
        "time.sleep(60)\n"
    )
    with started("daemon", [sys.executable, "-c", daemon], talks=True) as server:
        server.hear(30)
        tree = server.tree()
        assert len(tree) == 2
    assert not any(psutil.pid_exists(each.pid) for each in tree)


def test_a_server_that_ends_says_its_last_words() -> None:
    with (
        started("broken", [sys.executable, "-c", "raise SystemExit('no model')"]) as server,
        pytest.raises(ServerFailed, match="broken: it ended with exit code 1: no model"),
    ):
        server.wait_until(lambda: False, 30)


def test_a_program_that_is_missing_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match="gone: No such file"),
        started("gone", [str(tmp_path / "nothing")]),
    ):
        pass


def test_the_bare_session_is_timed(bundles: tuple[Bundle, Bundle]) -> None:
    assert 0 < run.session_run_us(bundles[0], 0.05) < 1e6


def test_the_bare_server_gives_the_agents_answers(bundles: tuple[Bundle, Bundle]) -> None:
    path = str(bundles[0].onnx_path)
    command = [sys.executable, "-m", "bench.loads.sketch", path, "--port", "0"]
    with started("sketch", command, talks=True) as server:
        port = int(str(server.hear(30)["port"]))
        for kind in KINDS:
            measure.require_right(port, infer(TINY, kind), bundles[0].answer)
        idle = measure.idle_cpu_percent(server, port, infer(TINY, "binary"), 0.1)
    assert np.isfinite(idle)
