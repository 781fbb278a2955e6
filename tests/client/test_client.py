"""The clients against a real HTTP server that answers what a test tells it to."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest

from fleet.client import calls, schemas
from fleet.client.client import ApiError, AsyncClient, Client
from fleet.client.errors import SignInNeeded, UnexpectedAnswer, Unreachable

OVERVIEW = {
    "devices": 3, "online": 2, "models": 1, "rollouts_running": 0, "jobs_running": 0,
    "drifting": 0, "samples": 9, "broker_connected": True, "version": "0.1.0",
}  # fmt: skip


@dataclass(frozen=True)
class Heard:
    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    url: str
    status: int = 200
    answer: bytes = b"{}"
    heard: list[Heard] = field(default_factory=list)

    def say(self, answer: object, status: int = 200) -> None:
        self.status = status
        self.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("content-length", 0))
            heard = Heard(
                self.command,
                url.path,
                parse_qsl(url.query),
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
            )
            state.heard.append(heard)
            self.send_response(state.status)
            self.send_header("content-length", str(len(state.answer)))
            self.end_headers()
            self.wfile.write(state.answer)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 (http.server's names)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def test_the_token_travels_in_the_header_only(server):
    server.say(OVERVIEW)
    with Client(server.url, "s3cret") as client:
        assert client.overview() == schemas.Overview(**OVERVIEW)
    (heard,) = server.heard
    assert heard.headers["authorization"] == "Bearer s3cret"
    assert (heard.method, heard.path, heard.query) == ("GET", "/v1/overview", [])


def test_without_a_token_no_header_is_sent(server):
    server.say(OVERVIEW)
    with Client(server.url) as client:
        client.overview()
    assert "authorization" not in server.heard[0].headers


def test_filters_become_parameters_and_labels_repeat(server):
    server.say({"total": 0, "offset": 100, "items": []})
    with Client(server.url, "t") as client:
        client.devices(
            offset=100, limit=50, search="a b", labels=["site=busan", "line=3"], online=False
        )
    assert server.heard[0].query == [
        ("offset", "100"), ("limit", "50"), ("search", "a b"), ("label", "site=busan"),
        ("label", "line=3"), ("online", "false"),
    ]  # fmt: skip


def test_names_cannot_leave_their_place_in_the_path(server):
    server.say({"error": "no device"}, 404)
    with Client(server.url, "t") as client, pytest.raises(ApiError):
        client.device("../audit?x=1#")
    assert server.heard[0].path == "/v1/devices/..%2Faudit%3Fx%3D1%23"


def test_a_body_is_json_and_a_project_is_a_tar(server):
    server.say({"name": "digits", "code_sha": "0", "applied_at": 0, "spec": {}})
    with Client(server.url, "t") as client:
        client.apply_project("digits", b"tar bytes")
    assert server.heard[0].body == b"tar bytes"
    assert server.heard[0].headers["content-type"] == "application/x-tar"
    server.say([])
    with Client(server.url, "t") as client:
        client.create_claims(schemas.ClaimIn(profile="this-machine"))
    assert json.loads(server.heard[1].body)["profile"] == "this-machine"


def test_an_answer_without_a_body_is_none(server):
    server.say(b"", 204)
    with Client(server.url, "t") as client:
        client.revoke_claim("c1")
    assert (server.heard[0].method, server.heard[0].path) == ("DELETE", "/v1/claims/c1")


def test_a_later_server_may_say_more(server):
    server.say(OVERVIEW | {"mood": "good"})
    with Client(server.url, "t") as client:
        assert client.overview().devices == 3


@pytest.mark.parametrize(
    ("status", "answer", "kind", "line"),
    [
        (404, {"error": "no device 'x'"}, ApiError, "no device 'x'"),
        (401, {"error": "unknown or revoked token"}, SignInNeeded, "unknown or revoked token"),
        (422, {"detail": [{"msg": "bad"}]}, ApiError, '[{"msg": "bad"}]'),
        (502, b"<html>proxy</html>", ApiError, "the control plane answered 502 Bad Gateway"),
        (500, {"error": "two\nlines"}, ApiError, "two lines"),
        (503, [1], ApiError, "the control plane answered 503 Service Unavailable"),
    ],
)
def test_a_refusal_is_one_line_with_its_status(server, status, answer, kind, line):
    server.say(answer, status)
    with Client(server.url, "t") as client, pytest.raises(kind) as refusal:
        client.overview()
    assert refusal.value.status == status
    assert refusal.value.message == line == str(refusal.value)


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[]", b""])
def test_an_answer_of_another_form_is_named(server, answer):
    server.say(answer)
    with Client(server.url, "t") as client, pytest.raises(UnexpectedAnswer) as refusal:
        client.overview()
    assert "GET /v1/overview: unexpected answer" in refusal.value.message
    assert "\n" not in refusal.value.message


def test_nobody_there_is_said_with_the_address():
    with Client("http://127.0.0.1:9", "t") as client, pytest.raises(Unreachable) as refusal:
        client.overview()
    assert refusal.value.status == 0
    assert "no control plane answers at http://127.0.0.1:9" in refusal.value.message


@pytest.mark.parametrize("address", ["", "localhost:8080", "ftp://x", "http://", "http://a:b:c"])
def test_a_wrong_address_is_refused_at_once(address):
    with pytest.raises(Unreachable, match="is not an address"):
        Client(address)


@pytest.mark.parametrize("token", ["토큰", "two words", "new\nline"])
def test_a_token_that_no_header_can_carry_is_refused_like_a_wrong_one(server, token):
    server.say({"error": "unknown or revoked token"}, 401)
    with Client(server.url, token) as client, pytest.raises(SignInNeeded):
        client.overview()


def test_the_asynchronous_client_says_the_same(server):
    async def both() -> None:
        async with AsyncClient(server.url, "s3cret") as client:
            server.say(OVERVIEW)
            assert (await client.overview()).devices == 3
            server.say({"error": "role viewer may not do this"}, 403)
            with pytest.raises(ApiError, match="role viewer"):
                await client.steer_rollout("r-1", "pause")
        async with AsyncClient("http://127.0.0.1:9") as client:
            with pytest.raises(Unreachable):
                await client.overview()

    asyncio.run(both())
    assert server.heard[1].path == "/v1/rollouts/r-1/pause"


def _methods(client: type[Client] | type[AsyncClient]) -> dict[str, tuple[str, str]]:
    """Public methods with their parameters and results as text."""
    return {
        name: (str(inspect.signature(method).parameters), str(inspect.signature(method)))
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_offer_the_same():
    assert _methods(Client) == _methods(AsyncClient)


def test_every_call_has_a_method():
    offered = {
        name
        for name, call in inspect.getmembers(calls, inspect.isfunction)
        if call.__module__ == calls.__name__ and not name.startswith("_")
    }
    assert offered - _methods(Client).keys() == set()
