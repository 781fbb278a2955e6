"""What one client can take from others, and what is counted of it: places, bytes, threads."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.serve import Limits
from edge_agent.serve.aside import SideThread
from edge_agent.serve.errors import Crowded
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.http_messages import HttpRequest, HttpResponse, json_response
from edge_agent.serve.oip import MAX_BODY_BYTES
from edge_agent.wire.manifest import CostModel

from .clients import post, raw, read_answers, read_until_closed, received, reset
from .conftest import Running, served, until
from .gates import Doubling, doubling
from .in_memory import Line, Wire, understood
from .test_protocol import INFER, json_request

OFFER = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
M = "/v2/models/m/infer"
SLOW = CostModel(per_item_us=0, fixed_us=1000, max_batch=1)
PAGE = {"Origin": "https://app.example"}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def never(request: HttpRequest, connection: HttpConnection) -> None:
    """A handler that does not come to an answer."""


def stalled(running: Running, size: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", running.port), timeout=10)
    client.sendall(post(b" " * (size - 1), length=size))
    return client


# ── the parser ───────────────────────────────────────────────────────────────────────────────────


def test_thousands_of_offers_at_once_are_passed_over(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop)
    line.send([OFFER * 3000])
    answers = received(line.end())
    assert [answer.status for answer in answers] == [200] * 3000


def test_offers_with_bodies_are_passed_over_wherever_they_are_cut(
    loop: asyncio.AbstractEventLoop,
) -> None:
    body = b"0123456789"
    one = b"POST /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 10\r\n\r\n"
    stream = (one + body) * 4
    for step in (1, 7, len(one), len(one) + 3, len(stream)):
        line = Line(loop)
        line.send([stream[start : start + step] for start in range(0, len(stream), step)])
        answers = received(line.end())
        assert [understood(answer.body)[2] for answer in answers] == [body] * 4


def test_an_error_of_our_own_while_parsing_ends_the_connection(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: HttpRequest, connection: HttpConnection) -> HttpResponse | None:
        raise RecursionError("told to fail")

    line = Line(loop, broken)
    line.send([OFFER])
    assert line.wire.aborted and not line.wire.written
    assert "connection.failed" in caplog.text
    line.end()


def test_a_refused_client_whose_request_never_ends_is_cut_off(
    loop: asyncio.AbstractEventLoop,
) -> None:
    line = Line(loop, never)
    line.send([b"GET / HTTP/1.1\r\n\r\n", b"\x00"])
    line.expire(line.limits.idle_s / 2)
    assert not line.wire.aborted
    line.expire(line.limits.idle_s + 1)
    assert line.wire.aborted
    line.end()


def test_a_tunnel_asked_for_behind_a_request_ends_the_connection(
    loop: asyncio.AbstractEventLoop,
) -> None:
    line = Line(loop)
    line.send([b"GET /later HTTP/1.1\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + OFFER])
    answers = received(bytes(line.wire.written))
    assert [understood(answer.body)[0] for answer in answers] == ["GET", "CONNECT"]
    assert answers[-1].closes and line.wire.ended
    line.end()


def test_tiny_chunks_take_no_more_than_is_counted(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, never)
    line.send([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 20_000])
    body = line._protocol._body
    assert isinstance(body, bytearray)
    assert line.limits.inflight_bytes == len(body) == 20_000
    line.end()


def test_reading_goes_on_after_the_last_answer(loop: asyncio.AbstractEventLoop) -> None:
    """Two large requests and half of a third: when both are answered, none is in the queue."""
    line = Line(loop, never)
    connection = line._protocol
    body = b" " * (5 << 20)
    request = post(body)
    line.send([request, request])
    assert not line.wire.reading
    line._run(lambda: connection.data_received(request[: 4 << 20]))  # was under way
    for _ in range(2):
        line._run(lambda: connection.answer(json_response({})))
    assert line.wire.reading
    line.end()


# ── places ───────────────────────────────────────────────────────────────────────────────────────


def test_stalled_uploads_keep_out_neither_the_small_nor_the_prompt(tmp_path: Path) -> None:
    limits = Limits(max_inflight_bytes=2_000_000)
    with served(tmp_path, limits=limits) as running:
        hogs = [stalled(running, 1_000_000) for _ in range(2)]
        until(lambda: limits.inflight_bytes == 2 * 999_999)
        assert running.ask("POST", INFER, json_request()).status == 200
        large = json.dumps(json_request()).encode() + b" " * 300_000
        assert running.ask("POST", INFER, large).status == 503  # nobody has been slow yet
        for connection in running.server._connections:
            connection._seen_s -= 2
        assert running.ask("POST", INFER, large).status == 200
        statuses = []
        for hog in hogs:
            with hog:
                hog.sendall(b" ")
                statuses.append(read_answers(hog, 1)[0].status)
        assert sorted(statuses) == [400, 503]  # one gave way, the other is blanks
        until(lambda: limits.inflight_bytes == 0)
        text = running.ask("GET", "/metrics").body.decode()
        assert 'skerry_errors_total{type="Crowded"} 2' in text


def test_the_administrative_socket_has_places_of_its_own(tmp_path: Path) -> None:
    limits = Limits(max_connections=2, max_admin_connections=2)
    with served(tmp_path, limits=limits) as running:
        clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(2)]
        until(lambda: len(running.server._connections) == 2)
        reply = running.ask_unix(running.unix_path, "GET", "/status")
        assert reply.status == 200
        until(lambda: not running.server._admin_connections)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for each in (first, second):
                each.connect(str(running.unix_path))
            assert running.ask_unix(running.unix_path, "GET", "/status").status == 503
        for client in clients:
            client.close()


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


def inflating(megabytes: int) -> tuple[bytes, bytes, bytes]:
    """A request of a few thousand bytes for the model "m", and its headers."""
    n = megabytes << 18
    tensor = {"name": "x", "shape": [1, n], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 4 * n}}]}).encode()
    length = b"Inference-Header-Content-Length: %d" % len(head)
    return gzip.compress(head + bytes(4 * n)), length, b"Content-Encoding: gzip"


def test_what_was_inflated_counts_until_the_answer(tmp_path: Path) -> None:
    limits = Limits(max_inflight_bytes=10 << 20)
    network = Doubling(held=True)
    body, *headers = inflating(6)
    with served(tmp_path, limits=limits) as running:
        running.plane.install("m", doubling(network, cost=SLOW, shape=(-1, -1)))
        with raw(running) as first, raw(running) as second:
            first.sendall(post(body, *headers, target=M))
            assert network.entered.acquire(timeout=5)
            assert limits.inflight_bytes > 6 << 20
            second.sendall(post(body, *headers, target=M))
            (answer,) = read_answers(second, 1)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            network.open.set()
            assert read_answers(first, 1)[0].status == 200
        until(lambda: limits.inflight_bytes == 0)


def test_a_small_body_that_becomes_large_is_inflated_in_the_thread(
    quick_serving: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def inflate(body: bytes, encoding: str) -> bytes:
        threads.append(threading.current_thread().name)
        return gzip.decompress(body)

    monkeypatch.setattr("edge_agent.serve.oip.inflate", inflate)
    quick_serving.plane.install("m", doubling(Doubling(), shape=(-1, -1)))
    for megabytes in (1, 3):
        body, *headers = inflating(megabytes)
        with raw(quick_serving) as client:
            client.sendall(post(body, *headers, target=M))
            assert read_answers(client, 1)[0].status == 200
    assert len(body) < 8192
    assert not threads[0].startswith("skerry-side") and threads[1].startswith("skerry-side")


def test_nothing_is_done_for_clients_that_have_gone_and_its_bytes_count_as_long_as_they_are_there(
    tmp_path: Path,
) -> None:
    limits = Limits()
    network = Doubling()
    body, *headers = inflating(3)
    entered, go_on = threading.Event(), threading.Event()

    def busy() -> None:
        entered.set()
        go_on.wait(10)

    with served(tmp_path, limits=limits) as running:
        running.plane.install("m", doubling(network, shape=(-1, -1)))
        side = running.server._routes._inference._side
        side._executor.submit(busy)
        assert entered.wait(5)
        clients = []
        for _ in range(5):
            client = socket.create_connection(("127.0.0.1", running.port))
            client.sendall(post(body, *headers, target=M))
            clients.append(client)
        until(lambda: side.waiting == 5)
        assert limits.inflight_bytes == 5 * len(body)
        for client in clients:
            reset(client)
        until(lambda: side.waiting == 0)
        assert limits.inflight_bytes == 0
        go_on.set()
        assert running.ask("POST", INFER, json_request()).status == 200
        assert not network.runs


def test_a_job_that_runs_keeps_what_it_holds_counted() -> None:
    async def go() -> tuple[int, int, list[str]]:
        limits, told = Limits(), list[str]()
        side = SideThread("t", max_waiting=0)
        entered, go_on = threading.Event(), threading.Event()

        def work() -> None:
            entered.set()
            go_on.wait(10)

        def handler(request: HttpRequest, connection: HttpConnection) -> None:
            side.run(
                connection, work, lambda _: told.append("then"), lambda _: told.append("failed")
            )

        connection = HttpConnection(handler, set(), limits)
        connection.connection_made(Wire())
        connection.data_received(post(b"x" * 1000))
        await asyncio.to_thread(entered.wait, 5)
        with pytest.raises(Crowded):
            side.run(connection, work, print, print)
        connection.connection_lost(None)
        held = limits.inflight_bytes
        go_on.set()
        for _ in range(500):
            if not side.waiting:
                break
            await asyncio.sleep(0.005)
        side.close()
        return held, limits.inflight_bytes, told

    assert asyncio.run(go()) == (1000, 0, [])


# ── counted, and told when to come again ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (b"nonsense\r\n\r\n", 400, "BadRequest"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431, "HeadTooLong"),
        (post(b"", length=MAX_BODY_BYTES + 1), 413, "BodyTooLarge"),
        (b"GET %s HTTP/1.1\r\nConnection: close\r\n\r\n" % INFER.encode(), 405, "MethodNotAllowed"),
    ],
)
def test_refusals_of_the_server_itself_are_counted(
    request_: bytes, status: int, kind: str, quick_serving: Running
) -> None:
    with raw(quick_serving) as client:
        client.sendall(request_)
        (answer,) = received(read_until_closed(client))
    assert answer.status == status
    assert quick_serving.plane.refusals[kind] == 1


def test_who_is_not_ready_says_when_to_come_again(quick_serving: Running) -> None:
    quick_serving.plane.models = {}
    assert quick_serving.ask("GET", "/v2/health/ready").headers["retry-after"] == "1"


# ── web pages ────────────────────────────────────────────────────────────────────────────────────


def test_web_pages_are_refused(quick_serving: Running) -> None:
    for origin in ("http://evil.example", "null", "http://localhost"):
        for method, path in (("POST", INFER), ("GET", "/v2"), ("OPTIONS", INFER)):
            reply = quick_serving.ask(method, path, json_request(), {"Origin": origin})
            assert reply.status == 403
            assert "access-control-allow-origin" not in reply.headers
    over_unix = quick_serving.ask_unix(quick_serving.unix_path, "GET", "/v2", headers=PAGE)
    assert over_unix.status == 200


def test_pages_of_named_origins_may_ask(tmp_path: Path) -> None:
    allowed = "access-control-allow-origin"
    with served(tmp_path, allow_origins=frozenset(PAGE.values()), token="secret") as running:
        asking = {"Access-Control-Request-Method": "POST"}
        preflight = running.ask("OPTIONS", INFER, headers=PAGE | asking)
        assert (preflight.status, preflight.headers[allowed]) == (200, PAGE["Origin"])
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        token = {"Authorization": "Bearer secret"}
        for _ in range(2):
            reply = running.ask("POST", INFER, json_request(), PAGE | token)
            assert (reply.status, reply.headers[allowed]) == (200, PAGE["Origin"])
        refused = running.ask("POST", INFER, json_request(), PAGE)
        assert (refused.status, refused.headers[allowed]) == (401, PAGE["Origin"])
        assert running.ask("OPTIONS", INFER, headers={"Origin": "x"} | asking).status == 403
