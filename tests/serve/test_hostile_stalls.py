"""Clients that take all the time in the world, and queues of clients that have gone.

The limits are tenths of seconds here, so that running into them takes no patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from edge_agent.serve import ServedModel, Server
from edge_agent.serve.http_messages import Limits
from edge_agent.wire.manifest import CostModel, Manifest, StepSpec
from tests.runtime.networks import STEPS, images, write_bundle

from .clients import (
    CHUNKED,
    INFER,
    LIVE,
    Neighbour,
    binary_body,
    json_body,
    open_sockets,
    open_tasks,
    post,
    read_answers,
    read_until_closed,
    received,
    reset,
    wait_for,
    watched,
)
from .conftest import Running, serve
from .in_memory import Line

SLOW_STEP = """
import time
from edge_agent.pipeline import processor

@processor("slow")
def slow(tensors, *, seconds_per_item: float):
    time.sleep(seconds_per_item * len(tensors["image"]))
    return tensors
"""
ITEM_S = 0.05
SLOW = "/v2/models/slow/infer"
START = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The digits, and a model "slow" that takes `ITEM_S` for each item."""
    directory = tmp_path_factory.mktemp("stalls")
    for running in serve(uvloop.new_event_loop(), directory):
        running.plane.install("slow", ServedModel.load(write_slow_bundle(directory / "slow")))
        yield running


def write_slow_bundle(directory: Path) -> Path:
    steps = (StepSpec(name="slow", config={"seconds_per_item": ITEM_S}), *STEPS)
    write_bundle(directory, steps=steps, code={"steps.py": SLOW_STEP}, with_golden=False)
    path = directory / "manifest.json"
    manifest = Manifest.decode(path.read_bytes(), limit=1 << 20)
    cost = CostModel(per_item_us=ITEM_S * 1e6, fixed_us=0, max_batch=1)
    path.write_bytes(manifest.model_copy(update={"cost": cost}).encode())
    return directory


@pytest.fixture(autouse=True)
def neighbour(running: Running) -> Iterator[Neighbour]:
    with watched(running) as other:
        yield other


Connect = Callable[[], socket.socket]


@pytest.fixture
def limited(running: Running) -> Iterator[Callable[[Limits], Connect]]:
    """Starts a server of the same models under other limits; gives what connects to it."""
    servers: list[Server] = []
    with contextlib.ExitStack() as stack:

        def start(limits: Limits) -> Connect:
            async def make() -> Server:
                server = Server(running.plane, limits=limits, debug=True)
                await server.start()
                return server

            server = running.call(make())
            servers.append(server)

            def connect() -> socket.socket:
                client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                return stack.enter_context(client)

            return connect

        yield start
    for server in servers:
        running.call(server.stop())


def trickle(client: socket.socket, head: bytes, drop: bytes) -> bytes:
    """Send `head`, then `drop` again and again until the server has enough; what it answers."""
    client.sendall(head)
    client.settimeout(0.05)
    data = b""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError):
            client.sendall(drop)
        try:
            part = client.recv(65536)
        except TimeoutError:
            continue
        if not part:
            return data
        data += part
    raise AssertionError("it is listened to for ever")


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"G", b""),
        (b"GET /v2 HTTP/1.1\r\n", b"X: y\r\n"),
        (b"GET /v2 HTTP/1.1\r\nX: ", b"y"),
        (START + b"Content-Length: 100000\r\n\r\n", b" "),
        (START + CHUNKED + b"\r\n", b"1\r\n \r\n"),
        (LIVE + b"GET /", b"y"),
    ],
    ids=["nothing more", "headers", "one header", "body", "chunks", "after a right request"],
)
def test_a_request_that_never_ends_is_given_up(
    head: bytes, drop: bytes, limited: Callable[[Limits], Connect], neighbour: Neighbour
) -> None:
    connect = limited(Limits(message_s=0.3, idle_s=5))
    start = time.monotonic()
    answers = received(trickle(connect(), head, drop))
    assert 0.25 < time.monotonic() - start < 2
    assert [answer.status for answer in answers] == [200] * head.count(b"health") + [408]
    assert answers[-1].error and answers[-1].closes
    neighbour.ask()


@pytest.mark.parametrize("before", [b"", LIVE, b"\r\n"], ids=["silent", "asked once", "empty line"])
def test_a_connection_that_asks_nothing_is_closed(
    before: bytes, limited: Callable[[Limits], Connect]
) -> None:
    client = limited(Limits(idle_s=0.3))()
    client.sendall(before)
    answers = received(read_until_closed(client))
    assert len(answers) == before.count(b"health")


def test_a_body_may_take_longer_than_a_connection_may_be_idle(
    limited: Callable[[Limits], Connect],
) -> None:
    request = post(json_body())
    client = limited(Limits(idle_s=0.1, message_s=5))()
    step = len(request) // 6
    for start in range(0, len(request), step):
        client.sendall(request[start : start + step])
        time.sleep(0.05)
    assert read_answers(client, 1)[0].status == 200


def test_an_answer_that_takes_longer_than_clients_may_is_not_cut_off(
    limited: Callable[[Limits], Connect],
) -> None:
    client = limited(Limits(idle_s=0.1, message_s=0.1))()
    client.sendall(post(json_body(10, id="late"), target=SLOW))
    (answer,) = read_answers(client, 1)
    assert (answer.status, answer.json["id"]) == (200, "late")


@pytest.mark.parametrize("closing", [False, True], ids=["stays", "closes"])
def test_who_does_not_read_an_answer_is_cut_off(
    closing: bool, limited: Callable[[Limits], Connect]
) -> None:
    """Every step's tensors make more megabytes than the system keeps for a connection."""
    body, header = binary_body(images(4096).tobytes(), [4096, 8, 8], parameters={"trace": True})
    request = post(body, header, *([b"Connection: close"] if closing else []))
    connect = limited(Limits(idle_s=0.3))
    before = open_sockets()
    client = connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.sendall(request)
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    wait_for(lambda: open_sockets() <= before + 1, "its connection is kept")


def test_a_close_that_does_not_come_to_an_end_is_made_an_end_of() -> None:
    """Too little is left to be written for the transport to say that the client does not read."""
    loop = asyncio.new_event_loop()
    line = Line(loop)
    line.send([LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")])
    assert line.wire.closed and not line.wire.aborted
    line.expire(after_s=line.limits.idle_s + 1)
    assert line.wire.aborted
    line.end()
    loop.close()


def test_what_a_client_sent_before_it_vanished_counts_no_more(
    limited: Callable[[Limits], Connect],
) -> None:
    connect = limited(Limits(max_inflight_bytes=1 << 20))
    body = json_body() + b" " * 700_000
    for _ in range(4):
        client = connect()
        client.sendall(post(body)[:-1])
        reset(client)
    accepted = connect()
    accepted.sendall(post(body))
    assert read_answers(accepted, 1)[0].status == 200


def test_bodies_of_all_connections_are_bounded_together(
    limited: Callable[[Limits], Connect],
) -> None:
    connect = limited(Limits(max_inflight_bytes=1 << 20))
    body = json_body() + b" " * 700_000
    first, second = connect(), connect()
    first.sendall(post(body)[:-1])
    first_is_there = time.monotonic()
    answers: list[int] = []
    while not answers and time.monotonic() - first_is_there < 5:
        second.sendall(post(body)[:600_000])
        (answer,) = received(read_until_closed(second))
        answers.append(answer.status)
    assert answers == [503]
    assert answer.error and answer.headers["retry-after"]
    first.sendall(body[-1:])
    assert read_answers(first, 1)[0].status == 200
    third = connect()
    third.sendall(post(body))
    assert read_answers(third, 1)[0].status == 200


# ── a model that cannot keep up ──────────────────────────────────────────────────────────────────


def ask_slow(running: Running, **parameters: object) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", running.port), timeout=10)
    client.sendall(post(json_body(parameters=parameters), target=SLOW))
    return client


def test_neighbours_of_another_model_do_not_wait_for_a_slow_one(
    running: Running, neighbour: Neighbour
) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ask_slow(running)) for _ in range(6)]
        for _ in range(10):
            neighbour.ask(within_s=0.3)
        for client in clients:
            assert read_answers(client, 1)[0].status == 200


def test_who_has_gone_is_not_computed_for(running: Running) -> None:
    with ask_slow(running) as first:
        time.sleep(ITEM_S / 5)  # it runs; the others wait
        for _ in range(15):
            reset(ask_slow(running))  # an end in good order could be half of one
        start = time.monotonic()
        with ask_slow(running) as last:
            assert read_answers(last, 1)[0].status == 200
        assert time.monotonic() - start < 8 * ITEM_S
        assert read_answers(first, 1)[0].status == 200


def test_who_cannot_be_answered_in_time_is_told_so_at_once(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        patient = [stack.enter_context(ask_slow(running)) for _ in range(4)]
        time.sleep(ITEM_S / 5)
        start = time.monotonic()
        hasty = stack.enter_context(ask_slow(running, timeout=int(ITEM_S * 1e6)))
        (answer,) = read_answers(hasty, 1)
        assert answer.status == 503
        assert answer.error
        assert time.monotonic() - start < 5 * ITEM_S
        for client in patient:
            assert read_answers(client, 1)[0].status == 200


def test_a_crowd_gets_answers_or_refusals_and_leaves_nothing(running: Running) -> None:
    tasks = open_tasks(running)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(ask_slow(running)) for _ in range(120)]
        for client in crowd[::2]:
            client.close()
        answers = [read_answers(client, 1)[0] for client in crowd[1::2]]
    assert {answer.status for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert answer.error and int(answer.headers["retry-after"]) >= 1
    assert open_tasks(running) <= tasks


def test_a_server_that_stops_does_not_wait_for_those_who_stall(
    running: Running, limited: Callable[[Limits], Connect]
) -> None:
    async def make() -> Server:
        server = Server(running.plane)
        await server.start()
        return server

    server = running.call(make())
    with contextlib.ExitStack() as stack:
        for head in (b"", b"GET /", START + b"Content-Length: 100\r\n\r\n", LIVE):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            stack.enter_context(client).sendall(head)
        start = time.monotonic()
        running.call(server.stop())
        assert time.monotonic() - start < 1
