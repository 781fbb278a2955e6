"""Deadlines, admission, clients that go, and versions that end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.pipeline import Rejected, StepFailed
from edge_agent.serve import DataPlane, Expired, Overloaded, Prediction, lanes
from edge_agent.wire.manifest import CostModel, Limits, StepSpec
from tests.runtime.networks import deep_spec, write_deep

from .asking import (
    SLOW,
    asked,
    close_planes,
    doubled,
    entered,
    held_back,
    planed,
    settled,
    workers,
)
from .conftest import until
from .gates import Doubling, alter, doubling, rows


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    close_planes()


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_whose_time_is_over_is_dropped_before_it_runs() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network)
        tasks += await asked(plane, 1.0, timeout_s=0.05)
        tasks += await asked(plane, 2.0)
        await asyncio.sleep(0.06)
        network.open.set()
        answers = await settled(tasks)
        assert isinstance(answers.pop(1), Expired)
        assert doubled(answers) == [[200], [4]]
        assert network.batches == [1, 1]
        (_, _, snapshot) = plane.snapshots()[0]
        assert snapshot.shed == {"expired": 1}

    asyncio.run(work())


def test_a_request_whose_time_is_over_is_answered_while_the_worker_is_still_busy() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network)
        hurried = [
            *await asked(plane, 1.0, timeout_s=0.15),
            *await asked(plane, 2.0, timeout_s=0.1),
        ]
        late = await asyncio.wait_for(settled(hurried), 5)
        assert [type(each) for each in late] == [Expired, Expired]
        assert not tasks[0].done()
        network.open.set()
        assert doubled(await settled(tasks)) == [[200]]

    asyncio.run(work())


def test_a_step_that_ends_the_interpreter_ends_its_request_alone() -> None:
    def quit_(tensors: object) -> None:
        raise SystemExit(3)

    network = Doubling()
    network.run = quit_  # type: ignore[assignment, method-assign]

    async def work() -> None:
        plane = planed(doubling(network))
        answers = await settled(await asked(plane, 1.0, 2.0))
        assert [type(each) for each in answers] == [StepFailed, StepFailed]

    asyncio.run(work())


def test_a_request_whose_time_is_over_is_dropped_on_the_loop_too() -> None:
    network = Doubling()

    async def work() -> None:
        plane = planed(doubling(network))
        tasks = await asked(plane, 1.0, timeout_s=0.0) + await asked(plane, 2.0)
        answers = await settled(tasks)
        assert isinstance(answers[0], Expired)
        assert doubled(answers[1:]) == [[4]]

    asyncio.run(work())
    assert network.batches == [1]


def test_a_request_whose_time_is_over_is_answered_although_every_worker_is_busy() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network)
        late = await asked(plane, 1.0, 2.0, timeout_s=0.03)
        late += await asked(plane, 3.0, timeout_s=0.01)
        tasks += await asked(plane, 4.0)
        assert all(isinstance(each, Expired) for each in await settled(late))
        assert plane.models["m"].waiting == 1
        network.open.set()
        assert doubled(await settled(tasks)) == [[200], [8]]
        assert network.batches == [1, 1]

    asyncio.run(work())


def test_one_timer_watches_over_all_deadlines() -> None:
    """Under load for days, timers that are left over would take all the time there is."""
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network)
        for timeout_s in (9.0, 8.0, 7.0, 0.02, 6.0, 5.0, 0.01):
            tasks += await asked(plane, 1.0, timeout_s=timeout_s)
        await asyncio.sleep(0.05)
        assert plane.models["m"].waiting == 5
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert len([timer for timer in timers if not timer.cancelled()]) == 1
        network.open.set()
        await settled(tasks)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("items", "timeout_s", "admitted"),
    [(1, 0.055, False), (1, 0.08, True), (10, 0.145, False), (10, 0.20, True)],
)
def test_what_cannot_be_in_time_by_the_model_s_cost_is_refused(
    items: int, timeout_s: float, admitted: bool
) -> None:
    """10 ms for each item and 50 ms for each batch, 60 and 150 ms."""
    network = Doubling()
    cost = CostModel(per_item_us=10_000, fixed_us=50_000, max_batch=16)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost))
        request = plane.predict("m", rows(*range(items)), timeout_s=timeout_s)
        if admitted:
            await request
        else:
            with pytest.raises(Overloaded) as refused:
                await request
            assert refused.value.retry_after_s == 1

    asyncio.run(work())
    assert bool(network.runs) is admitted


def test_a_refusal_tells_when_to_try_again() -> None:
    cost = CostModel(per_item_us=0, fixed_us=3e6)

    async def work() -> None:
        plane = planed(doubling(Doubling(), cost=cost))
        with pytest.raises(Overloaded) as refused:
            await plane.predict("m", rows(1.0), timeout_s=1.0)
        assert refused.value.retry_after_s == 3

    asyncio.run(work())


@pytest.mark.parametrize("max_batch", [1, 16], ids=["one by one", "in batches"])
def test_what_waits_already_counts(max_batch: int) -> None:
    """50 ms a batch: five that wait share one batch or take five."""
    network = Doubling(held=True)
    cost = CostModel(per_item_us=0, fixed_us=50_000, max_batch=max_batch)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost))
        tasks = await held_back(plane, network, 1.0, 2.0, 3.0, 4.0, 5.0)
        last = asyncio.gather(plane.predict("m", rows(6.0), timeout_s=0.2), return_exceptions=True)
        await asyncio.sleep(0)
        network.open.set()
        doubled(await settled(tasks))
        assert isinstance((await last)[0], Overloaded) is (max_batch == 1)

    asyncio.run(work())


def test_an_idle_model_takes_a_request_without_a_timeout_however_long_it_takes() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=CostModel(per_item_us=0, fixed_us=6e5)), queue_s=0.5)
        tasks = await held_back(
            plane, network, 1.0
        )  # a second one would wait for longer than 0.5 s
        network.open.set()
        answers = await settled(tasks)
        assert doubled(answers[:1]) == [[200]]
        assert isinstance(answers[1], Overloaded)

    asyncio.run(work())


@pytest.mark.parametrize("limit_ms", [None, 450.0])
def test_without_a_timeout_no_request_waits_for_longer_than_its_version_may_take(
    limit_ms: float | None,
) -> None:
    """200 ms a batch, and no sharing: the third would take 600 ms, and a second is allowed."""
    network = Doubling(held=True)

    async def work() -> None:
        model = doubling(network, cost=CostModel(per_item_us=0, fixed_us=200_000))
        limits = Limits(latency_p99_ms=limit_ms)
        model.manifest = model.manifest.model_copy(update={"limits": limits})
        tasks = await held_back(planed(model), network, 1.0, 2.0)
        network.open.set()
        answers = await settled(tasks)
        doubled(answers[:2])
        assert isinstance(answers[2], Overloaded) is (limit_ms is not None)

    asyncio.run(work())


def test_a_model_that_turns_out_slower_than_measured_admits_less() -> None:
    """1 ms an item was measured: 100 items behind one take 116 ms, or 680 ms at the speed seen."""
    network = Doubling(held=True)
    cost = CostModel(per_item_us=1000, fixed_us=0, max_batch=100)
    hundred = tuple(map(float, range(100)))

    async def admitted(plane: DataPlane) -> bool:
        tasks = await held_back(plane, network)
        tasks += await asked(plane, hundred, timeout_s=0.4)
        network.open.set()
        answers = await settled(tasks)
        network.open.clear()
        network.entered = threading.Semaphore(0)
        return isinstance(answers[1], Prediction)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost))
        assert await admitted(plane)
        slow = await held_back(plane, network)
        await asyncio.sleep(0.06)  # so that it took more than fifty times what was measured
        network.open.set()
        await settled(slow)
        network.open.clear()
        assert not await admitted(plane)

    asyncio.run(work())


def test_one_slow_run_does_not_lock_an_idle_model_to_requests_with_a_timeout() -> None:
    """Refused for ever, it would never be seen to be fast again."""
    network = Doubling(held=True)
    cost = CostModel(per_item_us=0, fixed_us=1000)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost))
        for _ in range(3):
            tasks = await asked(plane, 1.0)
            await entered(network)
            await asyncio.sleep(0.06)
            network.open.set()
            await settled(tasks)
            network.open.clear()
        network.open.set()
        await plane.predict("m", rows(2.0), timeout_s=0.005)

    asyncio.run(work())


def test_refused_inputs_do_not_make_a_model_look_fast_or_slow() -> None:
    """A checker refuses in microseconds what would take the network 100 ms."""
    network = Doubling()
    steps = (StepSpec(name="check.range", config={"min": 0, "max": 10}), StepSpec(name="model"))
    cost = CostModel(per_item_us=0, fixed_us=100_000)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost, steps=steps))
        for _ in range(30):
            (refused,) = await settled(await asked(plane, 99.0))
            assert isinstance(refused, Rejected)
        network.open.clear()
        tasks = await asked(plane, 1.0)
        await entered(network)
        late = await settled(await asked(plane, 2.0, timeout_s=0.09))
        assert isinstance(late[0], Overloaded)
        network.open.set()
        doubled(await settled(tasks))

    asyncio.run(work())


# ── clients that go, versions that end ───────────────────────────────────────────────────────────


def test_a_request_that_nobody_waits_for_any_more_is_not_computed() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network, 1.0, 2.0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        network.open.set()
        answers = await settled(tasks)
        assert isinstance(answers.pop(1), asyncio.CancelledError)
        assert doubled(answers) == [[200], [4]]

    asyncio.run(work())
    assert network.batches == [1, 1]


@pytest.mark.parametrize("end", ["close", "remove", "retire"])
def test_what_was_asked_is_answered_before_a_version_is_closed(end: str) -> None:
    network = Doubling(held=True)

    async def work() -> None:
        model = doubling(network, cost=SLOW)
        plane = planed(model)
        tasks = await held_back(plane, network, 1.0, 2.0)
        if end == "close":
            plane.close()
        elif end == "remove":
            plane.remove("m")
        else:  # as another thread does that installs a version
            await asyncio.to_thread(model.retire, asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        assert not network.closed
        network.open.set()
        assert doubled(await settled(tasks)) == [[200], [2], [4]]
        await asyncio.to_thread(until, lambda: network.closed)
        await asyncio.to_thread(until, lambda: not workers())

    asyncio.run(work())


def test_requests_of_the_turn_in_which_a_version_ends_are_answered_by_it() -> None:
    network = Doubling()

    async def work() -> None:
        plane = planed(doubling(network))
        tasks = await asked(plane, 1.0)
        plane.remove("m")
        assert doubled(await settled(tasks)) == [[2]]
        await asyncio.to_thread(until, lambda: network.closed)

    asyncio.run(work())


def test_an_answered_request_leaves_nothing_behind() -> None:
    """Neither the worker nor the lane keeps a request's tensors while it waits for the next."""
    network = Doubling()

    async def ask(plane: DataPlane) -> weakref.ref[Any]:
        prediction = await plane.predict("m", rows(1.0))
        return weakref.ref(prediction.inputs["x"])

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tensor = await ask(plane)
        await asyncio.to_thread(until, lambda: tensor() is None)

    gc.disable()
    try:
        asyncio.run(work())
    finally:
        gc.enable()


MEMORY = """
import asyncio, sys
from pathlib import Path
import numpy as np
from edge_agent.serve import DataPlane, ServedModel

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

async def work():
    plane = DataPlane()
    for _ in range(6):
        model = await asyncio.to_thread(ServedModel.load, Path(sys.argv[1]))
        old = plane.previous.get("m")
        plane.install("m", model)
        await plane.predict("m", {"x": np.ones((2, int(sys.argv[2])), np.float32)})
        while old is not None and old.lane is not None and not old._closed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the memory goes back in the thread that closed it
        print(resident_mib())
    plane.close()
    await asyncio.sleep(0.5)
    print(resident_mib())

asyncio.run(work())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads resident memory in /proc")
def test_versions_that_were_replaced_give_their_memory_back(tmp_path: Path) -> None:
    width, layers = 256, 240  # 60 MiB of weights
    write_deep(tmp_path / "model.onnx", width, layers, matrices=layers)
    network = deep_spec("onnxruntime", width)
    manifest = doubling(Doubling()).manifest
    fields = {"network": network, "inputs": network.inputs, "outputs": network.outputs}
    alter(tmp_path, manifest, **fields)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(width)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    *sizes, closed = [float(line) for line in done.stdout.split()]
    assert max(sizes[2:]) - sizes[1] < 20  # two are loaded all the time
    assert sizes[-1] - closed > 100


class Watched(Prediction):
    """Counts how often anything asks whether such a request is over."""

    looks = 0

    def is_over(self, now_s: float) -> bool:
        Watched.looks += 1
        return super().is_over(now_s)


def test_refusals_do_not_each_look_through_the_queue() -> None:
    """They come when there is the least time for it; once in `_SWEEP_S` is enough."""
    network = Doubling(held=True)
    waiting, refused = 200, 100

    async def work() -> None:
        plane = planed(doubling(network, cost=CostModel(per_item_us=0, fixed_us=1000)))
        model = plane.model("m")
        answered: list[Prediction] = []

        def submit(timeout_s: float) -> None:
            now_s = time.perf_counter()
            each = Watched("id", model.manifest, rows(1.0), 1, now_s, answered.append)
            each.deadline_s = now_s + timeout_s
            plane.submit(model, each)

        for _ in range(waiting):
            submit(30.0)
        Watched.looks = 0
        start_s = time.perf_counter()
        for _ in range(refused):
            with pytest.raises(Overloaded):
                submit(0.01)
        sweeps = (time.perf_counter() - start_s) / lanes._SWEEP_S
        assert Watched.looks <= waiting * (sweeps + 1)
        network.open.set()
        while len(answered) < waiting:
            await asyncio.sleep(0.001)

    asyncio.run(work())
