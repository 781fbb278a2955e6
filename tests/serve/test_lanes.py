"""Where requests wait, what becomes one batch, and what each of its items gets."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from edge_agent.pipeline import Array, Rejected, StepFailed, Tensors
from edge_agent.serve import DataPlane, Overloaded, Prediction
from edge_agent.wire.manifest import CostModel, StepSpec

from .asking import (
    SLOW,
    asked,
    close_planes,
    doubled,
    entered,
    held_back,
    planed,
    settled,
)
from .gates import POISON, Doubling, doubling, rows


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    close_planes()


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
        assert (snapshot.batches, snapshot.items) == ({8: 1, 1: 1}, 8)
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


def test_a_request_larger_than_a_batch_runs_alone_in_pieces() -> None:
    network = Doubling(held=True)

    async def work() -> None:
        plane = planed(doubling(network, cost=SLOW))
        tasks = await held_back(plane, network, 1.0, tuple(map(float, range(9))), 2.0)
        network.open.set()
        doubled(await settled(tasks))
        assert network.batches == [1, 1, 4, 4, 1, 1]

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


@pytest.mark.parametrize("cost", [SLOW, None], ids=["worker", "loop"])
def test_a_step_that_would_end_the_program_only_fails(cost: CostModel | None) -> None:
    class Quitting(Doubling):
        def run(self, tensors: Mapping[str, Array]) -> Tensors:
            if (tensors["x"] == POISON).any():
                sys.exit("no more")
            return super().run(tensors)

    async def work() -> None:
        plane = planed(doubling(Quitting(), cost=cost))
        for neighbours in ([], [1.0, 2.0]):
            answers = await settled(await asked(plane, POISON, *neighbours))
            assert isinstance(answers[0], StepFailed)
            assert doubled(answers[1:]) == [[2 * value] for value in neighbours]

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
