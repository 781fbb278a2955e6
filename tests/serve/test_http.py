"""HTTP as it happens on a wire: pieces, pipelines, floods, and clients that break off."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from edge_agent.serve import CannotListen, DataPlane, Limits, Server
from edge_agent.serve.http import MAX_HEAD_BYTES, MAX_HEADERS
from edge_agent.serve.oip import MAX_BODY_BYTES

from .conftest import Running, send, served, until
from .gates import gated
from .test_protocol import INFER, binary_request, json_request

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def raw(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=10)


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_until(client: socket.socket, enough: bytes, times: int = 1) -> bytes:
    data = b""
    while data.count(enough) < times:
        part = client.recv(65536)
        assert part, f"closed after {data!r}"
        data += part
    return data


def post(body: bytes, *, headers: bytes = b"") -> bytes:
    return (
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n"
        % (INFER.encode(), len(body), headers)
        + body
    )


def test_one_connection_carries_many_requests(serving: Running) -> None:
    connection = serving.connect()
    for number in range(20):
        reply = send(connection, "POST", INFER, json_request(id=str(number)))
        assert (reply.status, reply.json["id"]) == (200, str(number))
    connection.close()


def test_pipelined_requests_are_answered_in_their_order(serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(
            b"".join(post(json.dumps(json_request(id=f"n{i}")).encode()) for i in range(50))
        )
        data = read_until(client, b"model_name", 50)
    assert [data.find(f'"n{i}"'.encode()) for i in range(50)] == sorted(
        data.find(f'"n{i}"'.encode()) for i in range(50)
    )
    assert data.count(b"HTTP/1.1 200") == 50


def test_a_request_may_arrive_byte_by_byte(serving: Running) -> None:
    with raw(serving) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in LIVE:
            client.sendall(bytes([byte]))
        assert b"200 OK" in read_until(client, b"live")


def test_a_chunked_body_is_put_together(serving: Running) -> None:
    body = json.dumps(json_request()).encode()
    middle = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:middle], body[middle:]))
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with raw(serving) as client:
        client.sendall(head + chunks + b"0\r\n\r\n")
        assert b"200 OK" in read_until(client, b"model_name")


def test_a_client_that_asks_before_it_sends_is_encouraged(serving: Running) -> None:
    body = json.dumps(json_request()).encode()
    request = post(body, headers=b"Expect: 100-continue\r\n")
    with raw(serving) as client:
        client.sendall(request[: -len(body)])
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert b"200 OK" in read_until(client, b"model_name")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_wants_it_closed_gets_it_closed(version: bytes, serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(b"GET /v2 HTTP/%s\r\nConnection: close\r\n\r\n" % version)
        data = read_all(client)
    assert b"200 OK" in data
    assert b"Connection: close" in data


def test_an_oversized_body_is_refused_by_its_length_alone(serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(
            b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), MAX_BODY_BYTES + 1)
        )
        data = read_all(client)
    assert data.startswith(b"HTTP/1.1 413 ")
    assert b"the body is longer than 8388608 bytes" in data


def test_a_client_that_sends_an_oversized_body_anyway_reads_the_answer(serving: Running) -> None:
    reply = serving.ask("POST", INFER, b"x" * (MAX_BODY_BYTES + 1_000_000))
    assert reply.status == 413


def test_an_oversized_chunked_body_is_refused_on_the_way(serving: Running) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with raw(serving) as client:
        client.sendall(b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(MAX_BODY_BYTES // 0x10000 + 2):
            client.sendall(chunk)
        assert read_until(client, b"\r\n").startswith(b"HTTP/1.1 413 ")


def test_the_largest_body_is_taken(quick_serving: Running) -> None:
    reply = quick_serving.ask("POST", INFER, b" " * MAX_BODY_BYTES)
    assert reply.status == 400


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 10) + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * (MAX_HEAD_BYTES + 10) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    ],
    ids=["target", "one header", "many headers"],
)
def test_an_oversized_head_is_refused(head: bytes, serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(head)
        assert read_all(client).startswith(b"HTTP/1.1 431 ")


def test_a_header_that_never_ends_is_refused(serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(8):
            client.sendall(b"a" * 16384)
            time.sleep(0.005)  # so that it arrives in pieces
        assert read_until(client, b"\r\n").startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100],
)
def test_what_is_not_http_is_refused_and_closed(garbage: bytes, serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(garbage)
        assert read_all(client).startswith(b"HTTP/1.1 400 ")
    assert serving.ask("GET", "/v2/health/live").status == 200


def test_contradicting_lengths_are_refused(serving: Running) -> None:
    """The classic of request smuggling."""
    head = b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with raw(serving) as client:
        client.sendall(head)
        assert read_until(client, b"\r\n").startswith(b"HTTP/1.1 4")


def test_requests_before_a_broken_one_are_answered(serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(LIVE + LIVE + b"garbage\r\n\r\n")
        data = read_all(client)
    assert data.count(b"HTTP/1.1 200") == 2
    assert data.count(b"HTTP/1.1 400") == 1


def test_clients_that_break_off_leave_nothing_behind(serving: Running) -> None:
    body = json.dumps(json_request()).encode()
    for end in (10, 60, 200, None):
        with raw(serving) as client:
            client.sendall(post(body)[:end])
    deadline = time.monotonic() + 5
    while serving.server._connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not serving.server._connections
    assert serving.ask("POST", INFER, json_request()).status == 200


def test_a_client_that_half_closes_still_gets_its_answer(serving: Running) -> None:
    with raw(serving) as client:
        client.sendall(LIVE)
        client.shutdown(socket.SHUT_WR)
        assert b"200 OK" in read_all(client)


@pytest.mark.slow
def test_a_client_that_does_not_read_is_not_read_from(serving: Running) -> None:
    """It sends without end; its requests must not pile up here."""
    with raw(serving) as client:
        client.setblocking(False)
        sent = 0
        bound_bytes = 100 * 1024 * 1024  # the system's own buffers may hold dozens of megabytes
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 0.5 and sent < bound_bytes:
            try:
                sent += client.send(LIVE * 500)
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
    assert sent < bound_bytes
    assert serving.ask("GET", "/v2/health/live").status == 200


def test_connections_are_bounded() -> None:
    async def flood() -> tuple[int, int]:
        server = Server(DataPlane(), limits=Limits(max_connections=3))
        await server.start()
        streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        answers = []
        for reader, writer in streams:
            writer.write(LIVE)
            answers.append(await reader.readline())
        for _, writer in streams:
            writer.close()
        await server.stop()
        good = sum(b" 200 " in answer for answer in answers)
        return good, sum(b" 503 " in answer for answer in answers)

    assert asyncio.run(flood()) == (3, 2)


def test_the_unix_socket_is_its_owner_s_and_has_the_status(serving: Running) -> None:
    assert stat.S_IMODE(serving.unix_path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(str(serving.unix_path))
        client.sendall(b"GET /status HTTP/1.1\r\nConnection: close\r\n\r\n")
        data = read_all(client)
    assert data.endswith(b'{"model":"digits","online":false}')
    assert serving.ask("GET", "/status").status == 404


def test_a_taken_port_is_one_clear_error(quick_serving: Running) -> None:
    other = Server(DataPlane(), port=quick_serving.port)
    with pytest.raises(CannotListen, match=rf"cannot listen on 127\.0\.0\.1:{other._wanted_port}"):
        quick_serving.call(other.start())


def test_a_living_agent_s_socket_is_not_taken_over(quick_serving: Running) -> None:
    other = Server(DataPlane(), host=None, admin_path=quick_serving.unix_path)
    with pytest.raises(CannotListen, match="another agent does already"):
        quick_serving.call(other.start())
    assert quick_serving.unix_path.exists()


def test_a_dead_agent_s_socket_is_replaced_and_removed_at_the_end(
    quick_serving: Running,
) -> None:
    path = quick_serving.unix_path.with_name("dead.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server = Server(DataPlane(), host=None, admin_path=path)
    quick_serving.call(server.start())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
    quick_serving.call(server.stop())
    assert not path.exists()


def test_a_file_in_the_socket_s_place_is_left_alone(quick_serving: Running) -> None:
    path = quick_serving.unix_path.with_name("precious.txt")
    path.write_text("mine")
    with pytest.raises(CannotListen, match="no socket"):
        quick_serving.call(Server(DataPlane(), host=None, admin_path=path).start())
    assert path.read_text() == "mine"


def test_head_tells_the_length_and_sends_no_body(serving: Running) -> None:
    connection = serving.connect()
    whole = send(connection, "GET", "/v2/models/digits")
    head = send(connection, "HEAD", "/v2/models/digits")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert send(connection, "HEAD", INFER).status == 405
    assert send(connection, "GET", "/v2/health/live").json == {"live": True}
    connection.close()


def test_a_status_that_takes_long_holds_up_nobody(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def status() -> dict[str, str]:
        entered.set()
        assert go_on.wait(10)
        return {"model": "digits"}

    async def ask() -> bytes:
        server = Server(DataPlane(), admin_path=tmp_path / "s.sock", status=status)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
        writer.write(b"GET /status HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert await asyncio.to_thread(entered.wait, 10)
        other_reader, other = await asyncio.open_connection("127.0.0.1", server.port)
        other.write(LIVE)
        first = await asyncio.wait_for(other_reader.readline(), 10)
        go_on.set()
        assert b'"digits"' in await reader.read()
        for each in (writer, other):
            each.close()
        await server.stop()
        return first

    assert b" 200 " in asyncio.run(ask())


def test_a_body_counts_until_its_answer(tmp_path: Path) -> None:
    """What waits for a model is as much in memory as what is on its way."""
    limits = Limits(max_inflight_bytes=1_500_000)
    model, gate = gated(tmp_path)
    body, headers = binary_request(4096)  # a megabyte
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    with served(tmp_path, limits=limits) as running:
        running.plane.install("digits", model)
        with raw(running) as first:
            first.sendall(post(body, headers=head))
            assert gate.entered.acquire(timeout=5)
            assert limits.inflight_bytes == len(body)
            refused = running.ask("POST", INFER, body, headers)
            assert refused.status == 503
            assert "too much is in the works" in refused.error
            assert refused.headers["retry-after"] == "1"
            assert running.ask("POST", INFER, b"{", {}).status == 400  # a small one has its place
            gate.open.set()
            assert b" 200 " in read_until(first, b"model_name")
        assert running.ask("POST", INFER, body, headers).status == 200
        until(lambda: limits.inflight_bytes == 0)
