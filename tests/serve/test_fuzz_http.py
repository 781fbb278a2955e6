"""The HTTP side under bytes that nobody meant: in memory, in any pieces, and on one socket."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from .clients import INFER, chunked, json_body, post, read_answers, read_until_closed, received
from .conftest import Running, serve
from .in_memory import converse, cut, understood

KNOWN = {200, 400, 404, 405, 408, 413, 431}
"""All that HTTP alone may be answered with."""

FRAGMENTS = [
    b"GET ", b"POST ", b"PUT ", b"CONNECT ", b"PRI * ", b"/", b"/later", b"*",
    b"http://x/", b"?", b"%zz", b" ", b"\t", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/9.9\r\n",
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b": ", b"Host: x\r\n", b"Content-Length: ",
    b"Content-Length: 5\r\n", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n",
    b"Inference-Header-Content-Length: 0\r\n", b"0", b"5", b"-1", b"hello", b"5\r\nhello\r\n",
    b"0\r\n\r\n", b"ffffffffffffffff", b";a=b", b"\x00", b"\xff", b"X: y\r\n" * 120,
    b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
]  # fmt: skip

anything = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=25).map(b"".join),
)
places = st.lists(st.integers(0, 4000), max_size=12)

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
OWN_HEADERS = {
    "content-length", "transfer-encoding", "connection", "upgrade", "expect", "proxy-connection",
    "keep-alive",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A valid request: what was meant, and its bytes."""

    method: str
    target: str
    body: bytes
    wire: bytes


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
    path = draw(st.sampled_from(["/", "/later", "/later/2", "/v2/models/m/infer"]))
    target = path + draw(st.sampled_from(["", "?a=b", "?" + "q" * 300, "%20", "/é".encode().hex()]))
    headers = draw(
        st.lists(st.tuples(TOKEN, VALUE), max_size=4).map(
            lambda pairs: [pair for pair in pairs if pair[0].lower() not in OWN_HEADERS]
        )
    )
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{n}: {v}" for n, v in headers)]
    body = draw(st.binary(max_size=300))
    framing = draw(st.sampled_from(["length", "chunked", "none"]))
    if framing == "none":
        body, tail = b"", b""
    elif framing == "length":
        lines.append(f"Content-Length: {len(body)}")
        tail = body
    else:
        lines.append("Transfer-Encoding: chunked")
        tail = chunked(body, draw(st.integers(1, 120)))
    return Asked(method, target, body, "\r\n".join([*lines, "", ""]).encode() + tail)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def outcome(stream: bytes) -> list[tuple[int, bytes | None]]:
    """Status and body of all answers; a refusal's words may depend on where the bytes were cut."""
    return [
        (answer.status, answer.body if answer.status == 200 else None)
        for answer in received(stream)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(anything, places)
def test_any_bytes_in_any_pieces_are_answered_by_a_known_status(
    loop: asyncio.AbstractEventLoop, data: bytes, cuts: list[int]
) -> None:
    for answer in received(converse(loop, cut(data, cuts))):
        assert answer.status in KNOWN
        if answer.status != 200:
            assert answer.error
            assert answer.closes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(anything, places)
@example(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n", [44, 45, 46])
@example(b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", [1000, 2000, 19_000])
@example(b"GET /" + b"y" * 30_000 + b" HTTP/1.1\r\n\r\n", list(range(1, 30_000, 1000)))
def test_where_bytes_are_cut_changes_no_answer(
    loop: asyncio.AbstractEventLoop, data: bytes, cuts: list[int]
) -> None:
    assert outcome(converse(loop, cut(data, cuts))) == outcome(converse(loop, [data]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(requests(), max_size=6), places)
def test_valid_requests_are_understood_as_meant_in_order(
    loop: asyncio.AbstractEventLoop, asked: list[Asked], cuts: list[int]
) -> None:
    answers = received(converse(loop, cut(b"".join(each.wire for each in asked), cuts)))
    assert [answer.status for answer in answers] == [200] * len(asked)
    for answer, each in zip(answers, asked, strict=True):
        assert understood(answer.body) == (each.method, each.target, each.body)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(requests(), min_size=1, max_size=4), st.data())
def test_a_damaged_byte_never_shifts_the_answers_before_it(
    loop: asyncio.AbstractEventLoop, asked: list[Asked], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(each.wire for each in asked))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] = data.draw(st.integers(0, 255))
    answers = received(converse(loop, [bytes(stream)]))
    end = 0
    for answer, each in zip(answers, asked, strict=False):
        end += len(each.wire)
        if end > place:
            break
        assert understood(answer.body) == (each.method, each.target, each.body)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(requests(), min_size=1, max_size=3), st.integers(0, 2000), places)
def test_a_client_that_goes_at_any_byte_got_what_it_was_owed(
    loop: asyncio.AbstractEventLoop, asked: list[Asked], end: int, cuts: list[int]
) -> None:
    stream = b"".join(each.wire for each in asked)
    end %= len(stream) + 1
    answers = received(converse(loop, cut(stream[:end], cuts)))
    assert len(answers) == sum(
        sum(len(each.wire) for each in asked[: index + 1]) <= end for index in range(len(asked))
    )


# ── one socket, a whole life ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve(uvloop.new_event_loop(), tmp_path_factory.mktemp("fuzz"))


class Conversation(RuleBasedStateMachine):
    """Right, wrong and fatal requests on one connection; every answer is foretold."""

    def __init__(self, running: Running) -> None:
        super().__init__()
        self.running = running
        self.client: socket.socket | None = None
        self.expected: list[tuple[int, str]] = []
        self.count = 0
        self.fatal = False

    def _write(self, data: bytes, status: int, name: str = "", pieces: int = 1) -> None:
        if self.client is None:
            self.client = socket.create_connection(("127.0.0.1", self.running.port), timeout=10)
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = len(data) // pieces + 1
        for start in range(0, len(data), step):
            self.client.sendall(data[start : start + step])
        self.expected.append((status, name))

    def _name(self) -> str:
        self.count += 1
        return f"r{self.count}"

    @precondition(lambda self: not self.fatal)
    @rule(pieces=st.integers(1, 9), items=st.integers(1, 20))
    def ask(self, pieces: int, items: int) -> None:
        name = self._name()
        self._write(post(json_body(items, id=name)), 200, name, pieces)

    @precondition(lambda self: not self.fatal)
    @rule(size=st.integers(1, 400), pieces=st.integers(1, 5))
    def ask_in_chunks(self, size: int, pieces: int) -> None:
        name = self._name()
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._write(head.encode() + chunked(json_body(id=name), size), 200, name, pieces)

    @precondition(lambda self: not self.fatal)
    @rule(
        case=st.sampled_from(
            [
                (post(b"{"), 400),
                (post(b""), 400),
                (post(json_body(outputs=[{"name": "nope"}])), 400),
                (post(json_body(), b"Content-Encoding: gzip"), 400),
                (post(json_body(), b"Inference-Header-Content-Length: -1"), 400),
                (post(json_body(), target="/v2/models/other/infer"), 404),
                (post(json_body(), target="/nothing"), 404),
                (post(json_body(), target="/v2"), 405),
                (b"GET " + INFER.encode() + b" HTTP/1.1\r\n\r\n", 405),
            ]
        )
    )
    def ask_wrongly(self, case: tuple[bytes, int]) -> None:
        self._write(*case)

    @precondition(lambda self: not self.fatal)
    @rule(
        data=st.sampled_from(
            [
                b"nonsense\r\n\r\n",
                b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
            ]
        )
    )
    def break_http(self, data: bytes) -> None:
        self._write(data, 400)
        self.fatal = True

    @precondition(lambda self: self.client is not None and not self.fatal and self.expected)
    @rule()
    def read(self) -> None:
        assert self.client is not None
        self._compare(read_answers(self.client, len(self.expected)))

    @precondition(lambda self: self.client is not None)
    @rule(politely=st.booleans())
    def finish(self, politely: bool) -> None:
        assert self.client is not None
        if politely:
            self.client.shutdown(socket.SHUT_WR)
            self._compare(received(read_until_closed(self.client)))
        self.client.close()
        self.client, self.expected, self.fatal = None, [], False

    def _compare(self, answers: list) -> None:  # type: ignore[type-arg]
        assert [answer.status for answer in answers] == [status for status, _ in self.expected]
        for answer, (status, name) in zip(answers, self.expected, strict=True):
            if status == 200:
                assert answer.json["id"] == name
            else:
                assert answer.error
        self.expected = []

    def teardown(self) -> None:
        if self.client is not None:
            self.finish(True)


def test_right_and_wrong_requests_share_a_connection(running: Running) -> None:
    run_state_machine_as_test(
        lambda: Conversation(running),
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_coverage_guided_fuzzing_finds_nothing(tmp_path: Path) -> None:
    harness = Path(__file__).with_name("fuzz_http_atheris.py")
    done = subprocess.run(
        [sys.executable, str(harness), "-runs=2000", "-seed=7", f"-artifact_prefix={tmp_path}/"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 2000 runs" in done.stderr
