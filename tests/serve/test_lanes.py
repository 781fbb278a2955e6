"""Where requests wait, what becomes one batch, and what is refused or dropped for want of time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from edge_agent.pipeline import Rejected, StepFailed
from edge_agent.serve import DataPlane, Expired, Overloaded, Prediction, ServedModel
from edge_agent.wire.manifest import CostModel, StepSpec
from tests.runtime.networks import deep_spec, write_deep

from .conftest import until
from .gates import POISON, Doubling, alter, doubling, rows

T = TypeVar("T")

SLOW = CostModel(per_item_us=0, fixed_us=1000, max_batch=4)
"""On a worker, four items at once."""


_planes: list[DataPlane] = []


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    while _planes:
        _planes.pop().close()
    until(lambda: not workers())


def planed(model: ServedModel, **settings: Any) -> DataPlane:
    """A plane that serves `model`, and is closed after the test."""
    plane = DataPlane(**settings)
    plane.install("m", model)
    _planes.append(plane)
    return plane


def workers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("m-")]


async def entered(network: Doubling, times: int = 1) -> None:
    """Wait for runs to begin."""
    for _ in range(times):
        assert await asyncio.to_thread(network.entered.acquire, timeout=5), "no run began"


async def asked(
    plane: DataPlane, *requests: tuple[float, ...] | float, **how: Any
) -> list[asyncio.Task[Prediction]]:
    """Requests of one turn of the loop, one for each group of items; all have been submitted."""
    tasks = [
        asyncio.create_task(
            plane.predict("m", rows(*(each if isinstance(each, tuple) else (each,))), **how)
        )
        for each in requests
    ]
    await asyncio.sleep(0)
    return tasks


async def settled(tasks: list[asyncio.Task[Prediction]]) -> list[Prediction | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)


async def held_back(
    plane: DataPlane, network: Doubling, *requests: tuple[float, ...] | float
) -> list[asyncio.Task[Prediction]]:
    """As `asked`, behind a first request that the held worker is busy with."""
    first = await asked(plane, 100.0)
    await entered(network)
    return first + await asked(plane, *requests)


def doubled(predictions: list[Prediction | BaseException]) -> list[list[float]]:
    """First column of the answers, each of which must be twice its input."""
    columns = []
    for each in predictions:
        assert isinstance(each, Prediction), each
        np.testing.assert_array_equal(each.outputs["y"], 2 * each.inputs["x"])
        columns.append(each.outputs["y"][:, 0].tolist())
    return columns


# ── on the event loop ────────────────────────────────────────────────────────────────────────────


def test_requests_of_one_turn_of_the_loop_share_a_batch_and_get_their_own_rows() -> None:
    network = Doubling()

    async def work() -> None:
        plane = planed(doubling(network))
        answers = await settled(await asked(plane, 1.0, (2.0, 3.0), 4.0, (5.0, 6.0, 7.0)))
        assert doubled(answers) == [[2], [4, 6], [8], [10, 12, 14]]
        assert network.batches == [7]
        await plane.predict("m", rows(8.0))
        assert network.batches == [7, 1]
        assert {run.thread for run in network.runs} == {threading.current_thread().name}
        (_, _, snapshot) = plane.snapshots()[0]
        assert snapshot.batches == {7: 1, 1: 1}
        assert snapshot.predictions == 5

    asyncio.run(work())


def test_a_batch_on_the_loop_is_bounded_and_the_loop_turns_between_two() -> None:
    network = Doubling()

    async def work() -> None:
        model = doubling(network, cost=CostModel(per_item_us=100, fixed_us=0, max_batch=64))
        tasks = await asked(planed(model), *map(float, range(7)))
        for batches in ([3], [3, 3]):  # 300 µs each
            await asyncio.sleep(0)
            assert network.batches == batches
        assert doubled(await settled(tasks)) == [[2 * n] for n in range(7)]
        assert network.batches == [3, 3, 1]

    asyncio.run(work())


def test_requests_beyond_what_may_wait_on_the_loop_are_refused() -> None:
    network = Doubling()

    async def work() -> None:
        plane = planed(doubling(network), max_waiting=2)
        answers = await settled(await asked(plane, 1.0, 2.0, 3.0))
        assert doubled(answers[:2]) == [[2], [4]]
        assert isinstance(answers[2], Overloaded)
        (_, _, snapshot) = plane.snapshots()[0]
        assert snapshot.shed == {"overloaded": 1}

    asyncio.run(work())


@pytest.mark.parametrize(("cost_us", "inline"), [(299, True), (301, False)])
def test_the_cost_decides_where_a_model_runs(cost_us: float, inline: bool) -> None:
    network = Doubling()
    model = doubling(network, cost=CostModel(per_item_us=0, fixed_us=cost_us))
    asyncio.run(planed(model).predict("m", rows(1.0)))
    assert network.runs[0].thread == (threading.current_thread().name if inline else "m-0")


def test_a_large_request_of_a_fast_model_does_not_hold_up_the_loop() -> None:
    network = Doubling()

    async def work() -> None:
        cost = CostModel(per_item_us=10, fixed_us=90, max_batch=64)
        plane = planed(doubling(network, cost=cost))
        for items in (1, 21, 22):
            await plane.predict("m", rows(*range(items)))

    asyncio.run(work())
    assert [run.thread == "m-0" for run in network.runs] == [False, False, True]


# ── on workers ───────────────────────────────────────────────────────────────────────────────────


def test_what_waits_while_the_worker_is_busy_becomes_the_next_batch() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network, 1.0, (2.0, 3.0), 4.0, 5.0, 6.0)
        assert plane.models["m"].waiting == 5
        network.open.set()
        answers = await settled(tasks)
        assert doubled(answers) == [[200], [2], [4, 6], [8], [10], [12]]
        assert network.batches == [1, 4, 2]
        assert plane.models["m"].waiting == 0

    asyncio.run(work())


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network, 1.0, tuple(map(float, range(9))), 2.0)
        network.open.set()
        doubled(await settled(tasks))
        assert network.batches == [1, 1, 9, 1]

    asyncio.run(work())


@pytest.mark.parametrize("cost", [SLOW, None], ids=["worker", "loop"])
def test_answers_come_in_the_order_of_the_requests(cost: CostModel | None) -> None:
    network = Doubling()
    order: list[float] = []

    async def ask(plane: DataPlane, value: float) -> None:
        await plane.predict("m", rows(value))
        order.append(value)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost))
        await asyncio.gather(*(ask(plane, float(value)) for value in range(30)))

    asyncio.run(work())
    assert order == sorted(order)
    assert len(order) == 30


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "loop"])
def test_requests_of_different_shapes_never_share_a_batch(worker: bool) -> None:
    network = Doubling(held=worker)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW if worker else None, shape=(-1, -1)))
        first = []
        if worker:
            first = [asyncio.create_task(plane.predict("m", rows(0.0)))]
            await entered(network)
        tasks = [
            asyncio.create_task(plane.predict("m", rows(1.0, width=width)))
            for width in (2, 2, 3, 3, 2)
        ]
        await asyncio.sleep(0)
        network.open.set()
        answers = await settled(first + tasks)
        assert len(doubled(answers)) == len(first) + 5
        shapes = [run.shape for run in network.runs][len(first) :]
        assert shapes == [(2, 2), (2, 3), (1, 2)]

    asyncio.run(work())


def test_instances_run_at_the_same_time() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW, instances=2))
        tasks = []
        for value in (1.0, 2.0, 3.0):
            tasks += await asked(plane, value)
            if len(tasks) < 3:
                await entered(network)
        assert network.batches == [1, 1]
        assert plane.models["m"].waiting == 1  # the third waits for one of the two
        network.open.set()
        doubled(await settled(tasks))
        assert {run.thread for run in network.runs} == {"m-0", "m-1"}

    asyncio.run(work())


@pytest.mark.parametrize("cold", [True, False], ids=["first requests", "later requests"])
def test_requests_of_one_turn_that_cannot_share_a_batch_use_every_instance(cold: bool) -> None:
    network = Doubling(held=True)

    async def work() -> None:
        cost = CostModel(per_item_us=0, fixed_us=1000)
        plane = planed(doubling(network, cost=cost, instances=3))
        if not cold:
            network.open.set()
            for _ in range(2):
                await settled(await asked(plane, 1.0, 2.0, 3.0, 4.0))
            network.open.clear()
            for _ in range(8):
                network.entered.acquire()
        tasks = await asked(plane, 1.0, 2.0, 3.0, 4.0)
        await entered(network, times=3)
        assert plane.models["m"].waiting == 1
        network.open.set()
        doubled(await settled(tasks))

    asyncio.run(work())


# ── batches that do not work ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cost", [SLOW, None], ids=["worker", "loop"])
def test_an_item_that_fails_does_not_hurt_its_neighbours(cost: CostModel | None) -> None:
    network = Doubling(held=cost is not None)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost))
        if cost is None:
            tasks = await asked(plane, 100.0, 1.0, POISON, 2.0)
        else:
            tasks = await held_back(plane, network, 1.0, POISON, 2.0)
        network.open.set()
        answers = await settled(tasks)
        failed = answers.pop(2)
        assert isinstance(failed, StepFailed) and "poison" in str(failed)
        assert doubled(answers) == [[200], [2], [4]]
        (_, _, snapshot) = plane.snapshots()[0]
        assert (snapshot.predictions, snapshot.errors) == (3, 1)

    asyncio.run(work())


def test_an_item_that_is_rejected_does_not_hurt_its_neighbours() -> None:
    network = Doubling()
    steps = (
        StepSpec(name="check.range", config={"min": 0, "max": 10}),
        StepSpec(name="model"),
    )

    async def work() -> None:
        plane = planed(doubling(network, steps=steps))
        answers = await settled(await asked(plane, 1.0, 99.0, 2.0, (3.0, 98.0)))
        assert doubled([answers[0], answers[2]]) == [[2], [4]]
        assert isinstance(answers[1], Rejected) and isinstance(answers[3], Rejected)
        assert plane.window_metrics("m").rejects == 2

    asyncio.run(work())
    assert network.batches == [1, 1]


@pytest.mark.parametrize("cost", [SLOW, None], ids=["worker", "loop"])
def test_outputs_without_a_batch_axis_are_found_out_and_requests_served_one_by_one(
    cost: CostModel | None, caplog: pytest.LogCaptureFixture
) -> None:
    network = Doubling(held=cost is not None, flat=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=cost, shape=(-1,)))

        async def ask(*values: float) -> list[float]:
            tasks = [
                asyncio.create_task(plane.predict("m", {"x": np.float32([value])}))
                for value in values
            ]
            await asyncio.sleep(0)
            network.open.set()
            answers = await settled(tasks)
            return [each.outputs["y"].item() for each in answers if isinstance(each, Prediction)]

        assert await ask(1.0, 2.0, 3.0) == [2, 4, 6]
        network.runs.clear()
        assert await ask(4.0, 5.0) == [8, 10]
        assert network.batches == [1, 1]

    asyncio.run(work())
    assert caplog.text.count("batch.not_possible model=m") == 1


@pytest.mark.parametrize("fixed_us", [10, 1000], ids=["loop", "worker"])
@pytest.mark.parametrize(
    ("shape", "max_batch"), [((1, 2), 64), ((-1, 2), 1)], ids=["fixed axis", "largest batch 1"]
)
def test_models_that_do_not_batch_answer_one_request_at_a_time(
    shape: tuple[int, ...], max_batch: int, fixed_us: float
) -> None:
    network = Doubling()

    async def work() -> None:
        cost = CostModel(per_item_us=0, fixed_us=fixed_us, max_batch=max_batch)
        plane = planed(doubling(network, cost=cost, shape=shape))
        assert doubled(await settled(await asked(plane, 1.0, 2.0, 3.0))) == [[2], [4], [6]]

    asyncio.run(work())
    assert network.batches == [1, 1, 1]


def test_a_traced_request_runs_alone() -> None:
    network = Doubling()

    async def work() -> None:
        plane = planed(doubling(network))
        tasks = [
            asyncio.create_task(plane.predict("m", rows(value), trace=value == 3))
            for value in (1.0, 2.0, 3.0, 4.0)
        ]
        answers = await settled(tasks)
        assert doubled(answers) == [[2], [4], [6], [8]]
        (name, made) = answers[2].steps[0]  # type: ignore[union-attr]
        assert name == "model"
        np.testing.assert_array_equal(made["y"], [[6, 6]])
        assert [len(each.steps) for each in answers] == [0, 0, 1, 0]  # type: ignore[union-attr]

    asyncio.run(work())
    assert network.batches == [2, 1, 1]


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


@pytest.mark.parametrize(
    ("items", "timeout_s", "admitted"),
    [(1, 0.06, False), (1, 0.08, True), (10, 0.16, False), (10, 0.20, True)],
)
def test_what_cannot_be_in_time_by_the_model_s_cost_is_refused(
    items: int, timeout_s: float, admitted: bool
) -> None:
    """10 ms for each item and 50 ms for each batch, with a margin of 15 %: 69 and 172.5 ms."""
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
        assert refused.value.retry_after_s == 4  # 3.45 s

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
            await asyncio.to_thread(model.retire)
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


# ── the hook of a transport ──────────────────────────────────────────────────────────────────────


def test_a_transport_that_fails_on_one_answer_does_not_hurt_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answered: list[str] = []

    def done(prediction: Prediction) -> None:
        if prediction.prediction_id == "bad":
            raise OSError("gone")
        answered.append(prediction.prediction_id)

    async def work() -> None:
        plane = planed(doubling(Doubling()))
        model = plane.model("m")
        for name in ("a", "bad", "b"):
            plane.submit(model, Prediction(name, model.manifest, rows(1.0), 1, 0.0, done))
        await asyncio.sleep(0.01)

    asyncio.run(work())
    assert answered == ["a", "b"]
    assert caplog.text.count("answer.failed model=m") == 1


def test_ids_are_unique_and_of_one_length() -> None:
    ids = [plane.new_id() for plane in (DataPlane(), DataPlane()) for _ in range(1000)]
    assert len(set(ids)) == 2000
    assert len(set(map(len, ids))) == 1
