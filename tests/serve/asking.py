"""Requests as the tests make them: of a data plane, and in binary over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np

from edge_agent.serve import DataPlane, Prediction, ServedModel
from edge_agent.wire.manifest import CostModel

from .conftest import Reply, Running, until
from .gates import Doubling, rows
from .test_protocol import INFER, binary_request

SLOW = CostModel(per_item_us=0, fixed_us=1000, max_batch=4)
"""On a worker, four items at once."""


_planes: list[DataPlane] = []


def close_planes() -> None:
    """Close all that `planed` made, and see their workers end."""
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


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────


BINARY = {"parameters": {"binary_data_output": True}}


def infer(
    running: Running, values: np.ndarray[Any, Any], headers: dict[str, str] | None = None,
    **more: object,
) -> Reply:  # fmt: skip
    """A binary request with `values` as the image."""
    body, length = binary_request(len(values), **more)
    body = body[: int(length["Inference-Header-Content-Length"])] + values.tobytes()
    return running.ask("POST", INFER, body, length | (headers or {}))


def head_and_tail(reply: Reply) -> tuple[dict[str, Any], bytes]:
    assert reply.status == 200, reply.body
    length = int(reply.headers["inference-header-content-length"])
    return json.loads(reply.body[:length]), reply.body[length:]
