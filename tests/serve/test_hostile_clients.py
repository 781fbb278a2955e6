"""Clients that break HTTP, stall, flood or vanish: each gets what it deserves, nobody else waits.

Every case runs beside a well-behaved neighbour and must leave no connection and no task behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

import pytest
import uvloop

from edge_agent.serve import Server
from edge_agent.serve.http import MAX_HEAD_BYTES, MAX_HEADERS
from edge_agent.serve.http_messages import Limits
from edge_agent.serve.oip import MAX_BODY_BYTES

from .clients import (
    CHUNKED,
    INFER,
    LIVE,
    Neighbour,
    chunked,
    exchange,
    json_body,
    open_sockets,
    post,
    raw,
    read_answers,
    read_until_closed,
    received,
    reset,
    resident_bytes,
    wait_for,
    watched,
)
from .conftest import Running, serve

START = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    make = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    yield from serve(make(), tmp_path_factory.mktemp("hostile"))


@pytest.fixture(autouse=True)
def neighbour(running: Running) -> Iterator[Neighbour]:
    with watched(running) as other:
        yield other


# ── framing that two parsers could read in two ways ──────────────────────────────────────────────

SMUGGLED = b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        START + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n" + SMUGGLED,
        START + CHUNKED + b"Content-Length: 5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: 5, 5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: +5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: -5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: 0x5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: 5 5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: \r\n\r\n" + SMUGGLED,
        START + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + SMUGGLED,
        START + b"Content-Length : 5\r\n\r\n" + SMUGGLED,
        START + b"Content-Length: 5\r\n Content-Length: 6\r\n\r\n" + SMUGGLED,
        START + b"Transfer-Encoding: chunked, identity\r\n\r\n" + SMUGGLED,
        START + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
        START + b"Transfer-Encoding: gzip\r\n\r\n" + SMUGGLED,
        START + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + SMUGGLED,
        START + b"Transfer-Encoding : chunked\r\n\r\n" + SMUGGLED,
        START + CHUNKED + CHUNKED + b"\r\n" + SMUGGLED,
        START + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + SMUGGLED,
        START + CHUNKED + b"\r\n-1\r\n\r\n",
        START + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
        START + CHUNKED + b"\r\nxyz\r\nhello\r\n0\r\n\r\n",
        START + CHUNKED + b"\r\n" + b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n",
        START + CHUNKED + b"\r\n5\r\nhelloworld\r\n0\r\n\r\n",
        START + CHUNKED + b"\r\n5\nhello\n0\n\n",
        START + CHUNKED + b"\r\n5 ;\r\nhello\r\n0\r\n\r\n",
        START + b"X: a\rContent-Length: 5\r\n\r\n" + SMUGGLED,
        START + b"X\x00: a\r\n\r\n",
        START + b"X: a\x00b\r\n\r\n",
        START + b": empty\r\n\r\n",
        START + b"no colon\r\n\r\n",
        START + b" folded: at the start\r\n\r\n",
        b"GET /v2 HTTP/1.1 \r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.2\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"get /v2 HTTP/1.1\r\n\r\n",
        b"FROB /v2 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x80" * 100,
    ],
    ids=lambda data: repr(data[len(START) :][:48] if data.startswith(START) else data[:32]),
)
def test_ambiguous_or_broken_framing_is_refused_once_and_closed(
    data: bytes, running: Running
) -> None:
    with raw(running) as client:
        client.sendall(data)
        (answer,) = received(read_until_closed(client))
    assert answer.status == 400
    assert answer.error
    assert answer.closes


def test_what_came_before_the_broken_request_is_answered_and_nothing_after(
    running: Running,
) -> None:
    with raw(running) as client:
        client.sendall(LIVE + post(json_body(id="first")) + b"broken\r\n\r\n" + LIVE * 3)
        answers = received(read_until_closed(client))
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert answers[1].json["id"] == "first"


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /v2?" + b"a" * (MAX_HEAD_BYTES - 500) + b" HTTP/1.1\r\n\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES - 500) + b"\r\n\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\n" + b"a" * MAX_HEAD_BYTES + b": x\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEADERS - 1) + b"\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\n" + (b"X: " + b"y" * 900 + b"\r\n") * 60 + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + (b"X: " + b"y" * 900 + b"\r\n") * 30 + b"\r\n", 200),
    ],
    ids=lambda value: f"{value[:20]!r} {len(value)}" if isinstance(value, bytes) else str(value),
)
def test_heads_are_bounded_however_they_arrive(
    head: bytes, status: int, pieces: int, running: Running
) -> None:
    step = len(head) // pieces + 1
    with raw(running) as client:
        for start in range(0, len(head), step):
            client.sendall(head[start : start + step])
            time.sleep(0 if pieces == 1 else 0.0005)
        client.shutdown(socket.SHUT_WR)
        (answer,) = received(read_until_closed(client))
    assert answer.status == status
    if status != 200:
        assert answer.error
        assert answer.closes


def test_trailers_are_bounded_too(running: Running) -> None:
    """What follows the last chunk are headers again."""
    request = START + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 200_000 + b"\r\n"
    with raw(running) as client, contextlib.suppress(ConnectionError):
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        (answer,) = received(read_until_closed(client))
        assert answer.status == 431


@pytest.mark.parametrize(
    "start",
    [b"2;a=", b"2\r\n{}\r\n0\r\nX: ", b"2\r\n{}\r\n0\r\n"],
    ids=["extension", "trailer", "name"],
)
def test_what_frames_a_body_is_bounded_too(
    start: bytes, running: Running, neighbour: Neighbour
) -> None:
    before = resident_bytes()
    with raw(running) as client:
        client.sendall(START + CHUNKED + b"\r\n" + start)
        for _ in range(256):
            client.sendall(b"x" * 65536)
        neighbour.ask()
        assert resident_bytes() - before < 8 << 20
        (answer,) = received(read_until_closed(client))
    assert answer.status == 431
    assert answer.error and answer.closes


def test_a_trailer_changes_nothing_of_its_request(running: Running) -> None:
    trailer = b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 7\r\n\r\n"
    body = chunked(json_body())[:-2] + trailer
    (answer,) = exchange(running, START + CHUNKED + b"\r\n" + body)
    assert answer.status == 200


def test_many_tiny_chunks_are_put_together_promptly(running: Running, neighbour: Neighbour) -> None:
    body = json_body(100)
    with raw(running) as client:
        client.sendall(START + CHUNKED + b"\r\n" + chunked(body, 1))
        neighbour.ask()
        (answer,) = read_answers(client, 1)
    assert answer.status == 200


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["plain", "expect"])
def test_a_body_announced_too_long_is_refused_at_once(expect: bytes, running: Running) -> None:
    with raw(running) as client:
        client.sendall(START + b"Content-Length: %d\r\n%s\r\n" % (MAX_BODY_BYTES + 1, expect))
        data = read_until_closed(client)
    assert b"100 Continue" not in data
    (answer,) = received(data)
    assert answer.status == 413
    assert answer.error and answer.closes


def test_a_long_body_sent_all_the_same_does_not_take_the_answer_away(running: Running) -> None:
    with raw(running) as client:
        client.sendall(post(b"x" * (MAX_BODY_BYTES + (1 << 20))))
        (answer,) = received(read_until_closed(client))
    assert answer.status == 413


def test_a_chunked_body_is_refused_where_it_becomes_too_long(running: Running) -> None:
    before = resident_bytes()
    with raw(running) as client:
        client.sendall(START + CHUNKED + b"\r\n")
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        (answer,) = received(read_until_closed(client))
    assert answer.status == 413
    assert answer.error and answer.closes
    assert resident_bytes() - before < 4 * MAX_BODY_BYTES


def test_more_connections_than_there_is_room_for_are_told_so(running: Running) -> None:
    async def start() -> Server:
        server = Server(running.plane, limits=Limits(max_connections=4))
        await server.start()
        return server

    server = running.call(start())
    try:
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", server.port)
            kept = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(4)]
            for client in kept:
                client.sendall(LIVE)
                assert read_answers(client, 1)[0].status == 200
            for _ in range(20):
                with socket.create_connection(address, 10) as refused:
                    (answer,) = received(read_until_closed(refused))
                assert answer.status == 503
                assert answer.error and answer.closes
            for client in kept:
                client.sendall(post(json_body()))
                assert read_answers(client, 1)[0].status == 200
            kept.pop().close()

            def admitted() -> bool:
                with socket.create_connection(address, 10) as again:
                    again.sendall(LIVE)
                    again.shutdown(socket.SHUT_WR)
                    return received(read_until_closed(again))[0].status == 200

            wait_for(admitted, "a place that was given back is not given out again")
    finally:
        running.call(server.stop())


# ── clients that stall ───────────────────────────────────────────────────────────────────────────


def test_a_reader_that_never_reads_is_not_written_to_without_end(
    running: Running, neighbour: Neighbour
) -> None:
    """Answers of megabytes for requests of a few hundred bytes: a little memory, then silence."""
    body = json_body(2000)
    request = post(body)
    before = resident_bytes()
    with raw(running) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        sent, quiet_since = 0, time.monotonic()
        pending = b""
        while time.monotonic() - quiet_since < 0.2 and sent < 1 << 28:
            pending = pending or request
            try:
                count = client.send(pending)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            pending = pending[count:]
            sent += count
            quiet_since = time.monotonic()
        assert sent < 1 << 28, "it is read from without end"
        assert resident_bytes() - before < 64 << 20
        neighbour.ask()


def test_a_flood_of_pipelined_requests_shares_the_loop(
    running: Running, neighbour: Neighbour
) -> None:
    count = 3000
    with raw(running) as client:
        client.sendall(LIVE * count)
        neighbour.ask()
        assert len(read_answers(client, count)) == count


def test_pipelined_requests_of_all_kinds_are_answered_in_order(running: Running) -> None:
    requests, expected = [], []
    for number in range(60):
        kind = number % 6
        if kind == 0:
            requests.append(post(json_body(id=f"n{number}")))
        elif kind == 1:
            requests.append(START + CHUNKED + b"\r\n" + chunked(json_body(id=f"n{number}")))
        elif kind == 2:
            requests.append(post(b"{"))
        elif kind == 3:
            requests.append(LIVE)
        elif kind == 4:
            requests.append(b"GET /nothing-%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        else:
            requests.append(b"PUT /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        expected.append((200, 200, 400, 200, 404, 405)[kind])
    answers = exchange(running, b"".join(requests))
    assert [answer.status for answer in answers] == expected
    for number, answer in enumerate(answers):
        if number % 6 < 2:
            assert answer.json["id"] == f"n{number}"
        elif number % 6 == 4:
            assert f"nothing-{number}" in answer.error


# ── clients that go away ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("abrupt", [False, True], ids=["close", "reset"])
def test_a_client_that_goes_away_at_any_byte_leaves_nothing(
    abrupt: bool, running: Running, neighbour: Neighbour
) -> None:
    request = post(json_body())
    for end in [*range(0, len(request), 29), len(request)]:
        with raw(running) as client:
            client.sendall(request[:end])
            if abrupt:
                reset(client)
    neighbour.ask()


@pytest.mark.parametrize("abrupt", [False, True], ids=["close", "reset"])
def test_a_client_that_goes_away_while_its_answer_is_written_leaves_nothing(
    abrupt: bool, running: Running
) -> None:
    request = post(json_body(4000))
    for _ in range(2):
        with raw(running) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(request)
            assert client.recv(1)
            if abrupt:
                reset(client)


def test_clients_that_connect_and_say_nothing_cost_nothing(
    running: Running, neighbour: Neighbour
) -> None:
    before = open_sockets()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(raw(running))
        neighbour.ask()
    wait_for(lambda: open_sockets() <= before, "silent connections are left over")


@pytest.mark.parametrize(
    "request_",
    [LIVE, post(json_body()), START + CHUNKED + b"\r\n" + chunked(json_body()), LIVE * 200],
    ids=["get", "post", "chunked", "pipelined"],
)
def test_a_half_closed_client_gets_all_its_answers(request_: bytes, running: Running) -> None:
    answers = exchange(running, request_)
    assert len(answers) == max(1, request_.count(b"health"))
    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("end", [1, 40, 120, 300])
def test_a_client_that_half_closes_within_a_request_is_let_go(end: int, running: Running) -> None:
    answers = exchange(running, post(json_body())[:end])
    assert [answer.status for answer in answers] in ([], [400], [408])


# ── HTTP that is unusual and right ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "target",
    [
        "/v2/models/%64%69gits/infer",
        "/v2/models/digits/infer?x=/nothing",
        "http://example.org/v2/models/digits/infer",
        "http://127.0.0.1:8080/v2/models/%64igits/infer?a=b",
        "HTTP://x/v2/models/digits/infer",
    ],
)
def test_targets_in_other_forms_mean_the_same(target: str, running: Running) -> None:
    (answer,) = exchange(running, post(json_body(id="mine"), target=target))
    assert answer.status == 200
    assert answer.json["id"] == "mine"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", {404, 405}),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 405, 501}),
        (b"TRACE /v2 HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
        (b"PATCH /v2 HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
        (b"DELETE /v2/models/digits HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
        (b"PROPFIND /v2 HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
        (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET //status HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET http://x/status HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
    ],
    ids=lambda value: value[:30].decode() if isinstance(value, bytes) else "",
)
def test_foreign_methods_and_targets_are_refused_in_one_line(
    head: bytes, status: set[int], running: Running
) -> None:
    (answer,) = exchange(running, head)
    assert answer.status in status
    assert answer.error
    assert ("allow" in answer.headers) == (answer.status == 405)


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [("1.0", "", False), ("1.0", "keep-alive", True), ("1.1", "", True), ("1.1", "close", False)],
)
def test_a_connection_is_kept_as_the_client_says(
    version: str, connection: str, stays: bool, running: Running
) -> None:
    body = json_body()
    head = f"POST {INFER} HTTP/{version}\r\nContent-Length: {len(body)}\r\n"
    head += f"Connection: {connection}\r\n\r\n" if connection else "\r\n"
    with raw(running) as client:
        client.sendall(head.encode() + body)
        if stays:
            assert read_answers(client, 1)[0].status == 200
            client.sendall(head.encode() + body)
            assert read_answers(client, 1)[0].status == 200
        else:
            (answer,) = received(read_until_closed(client))
            assert answer.status == 200
            assert answer.closes


def test_an_offer_to_speak_another_protocol_is_passed_over(running: Running) -> None:
    """Java's client sends it with each first request, and goes on with the connection."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    for first in (
        LIVE[:-2] + offer + b"\r\n",
        post(json_body(), *offer.rstrip().split(b"\r\n")),
    ):
        with raw(running) as client:
            client.sendall(first)
            answers = read_answers(client, 1)
            assert answers[0].status == 200
            if answers[0].closes:
                assert client.recv(1) == b""
                continue
            client.sendall(post(json_body()))
            assert read_answers(client, 1)[0].status == 200


def test_who_asks_before_it_sends_is_told_to_go_on_only_by_http_1_1(running: Running) -> None:
    body = json_body()
    for version, interim in ((b"1.1", True), (b"1.0", False)):
        head = START.replace(b"1.1", version) + b"Content-Length: %d\r\n" % len(body)
        with raw(running) as client:
            client.sendall(head + b"Expect: 100-continue\r\n\r\n")
            if interim:
                assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            client.shutdown(socket.SHUT_WR)
            data = read_until_closed(client)
        assert b"100 Continue" not in data
        assert received(data)[0].status == 200


def test_random_bytes_are_answered_by_400_or_nothing(running: Running) -> None:
    for _ in range(30):
        for answer in exchange(running, os.urandom(2000)):
            assert answer.status == 400
            assert json.loads(answer.body)["error"]
