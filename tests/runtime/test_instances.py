"""How many runs proceed at the same time, and what a closed session does to those under way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime import RunFailed, Session, available, open_session
from tests.runtime.networks import deep_spec, write_deep

RUNTIMES = sorted(available())
WIDTH = 256
LONG, SHORT = (np.ones((rows, WIDTH), np.float32) for rows in (4000, 1))


def open_deep(directory: Path, runtime: str, instances: int) -> Session:
    path = write_deep(directory / "model.onnx", WIDTH, layers=16)
    return open_session(path, deep_spec(runtime, WIDTH, instances))


def overtakes(session: Session) -> bool:
    """Whether a short run that starts during a long one ends before it."""
    session.run({"x": SHORT})
    running = threading.Event()

    def long_run() -> None:
        running.set()
        session.run({"x": LONG})

    thread = threading.Thread(target=long_run)
    thread.start()
    running.wait()
    for _ in range(20):
        session.run({"x": SHORT})
    ended_first = thread.is_alive()
    thread.join()
    return ended_first


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="OpenVINO has no second stream on one core")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runs_of_two_instances_proceed_at_the_same_time(runtime: str, tmp_path: Path) -> None:
    session = open_deep(tmp_path, runtime, 2)
    assert session.instances == 2
    assert overtakes(session)


def test_one_openvino_instance_runs_one_batch_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    session = open_deep(tmp_path, "openvino", 1)
    assert session.instances == 1
    assert not overtakes(session)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_more_callers_than_instances_wait_their_turn(runtime: str, tmp_path: Path) -> None:
    session = open_deep(tmp_path, runtime, 2)
    batches = [np.full((1, WIDTH), index, np.float32) for index in range(8)]
    expected = [session.run({"x": batch})["y"] for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            answer = session.run({"x": batches[index]})["y"]
            if not np.array_equal(answer, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_instance_is_free_again_after_a_failed_run(runtime: str, tmp_path: Path) -> None:
    session = open_deep(tmp_path, runtime, 2)
    for _ in range(3):
        with pytest.raises(RunFailed):
            session.run({"x": np.ones((1, WIDTH + 1), np.float32)})
    assert session.run({"x": SHORT})["y"].shape == (1, WIDTH)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_run_under_way_ends_well_while_the_session_closes(runtime: str, tmp_path: Path) -> None:
    session = open_deep(tmp_path, runtime, 2)
    before = session.run({"x": LONG})["y"]
    running = threading.Event()
    answers: list[object] = []

    def work() -> None:
        running.set()
        try:
            answers.append(session.run({"x": LONG})["y"])
        except RunFailed as error:
            answers.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    running.wait()
    session.close()
    for thread in threads:
        thread.join(timeout=30)
    assert len(answers) == 4
    for answer in answers:
        if isinstance(answer, str):
            assert answer == "the session is closed"
        else:
            np.testing.assert_allclose(answer, before)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_stay_when_the_next_run_overwrites_the_buffers(
    runtime: str, tmp_path: Path
) -> None:
    session = open_deep(tmp_path, runtime, 1)
    first = session.run({"x": SHORT})["y"]
    kept = first.copy()
    session.run({"x": SHORT * 2})
    np.testing.assert_array_equal(first, kept)
