"""Who may connect and ask, and how often."""

from __future__ import annotations

import grp
import http.client
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.serve import CannotListen, DataPlane, RateLimit, RateLimited, Server, Unauthorized
from edge_agent.serve.access import Buckets, check_token

from .conftest import Reply, Running, send, served
from .test_protocol import INFER, json_request

TOKEN = "correct-horse"
REFUSED = "a bearer token is needed: Authorization: Bearer TOKEN"


# ── the bucket ───────────────────────────────────────────────────────────────────────────────────


class Clock:
    """Time that passes when told."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def takes(buckets: Buckets, client: str, wanted: int) -> int:
    """How many of `wanted` requests are let through before one is refused."""
    for taken in range(wanted):
        try:
            buckets.take(client)
        except RateLimited:
            return taken
    return wanted


def test_a_bucket_holds_a_burst_and_fills_at_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(RateLimit(per_second=2, burst=5), clock)
    assert takes(buckets, "a", 10) == 5
    clock.now_s += 0.4
    assert takes(buckets, "a", 10) == 0
    clock.now_s += 0.1
    assert takes(buckets, "a", 10) == 1
    clock.now_s += 2
    assert takes(buckets, "a", 10) == 4
    clock.now_s += 1e6
    assert takes(buckets, "a", 10) == 5


def test_a_client_that_keeps_asking_gets_its_rate_all_the_same() -> None:
    clock = Clock()
    buckets = Buckets(RateLimit(per_second=10, burst=1), clock)
    let_through = 0
    for _ in range(1000):
        clock.now_s += 0.01
        let_through += takes(buckets, "a", 1)
    assert 90 <= let_through <= 101  # of a bucket of one, what a little overflows is lost


@pytest.mark.parametrize(("per_second", "retry_after_s"), [(10, 1), (0.5, 2), (0.03, 34)])
def test_a_refusal_tells_when_the_next_request_is_due(
    per_second: float, retry_after_s: int
) -> None:
    clock = Clock()
    buckets = Buckets(RateLimit(per_second, 1), clock)
    buckets.take("a")
    with pytest.raises(RateLimited) as refused:
        buckets.take("a")
    assert refused.value.retry_after_s == retry_after_s
    clock.now_s += retry_after_s
    buckets.take("a")


def test_clients_have_buckets_of_their_own() -> None:
    buckets = Buckets(RateLimit(per_second=1, burst=2), Clock())
    assert takes(buckets, "a", 5) == 2
    assert takes(buckets, "b", 5) == 2
    assert takes(buckets, "a", 5) == 0


def test_the_clients_longest_unheard_of_are_forgotten() -> None:
    buckets = Buckets(RateLimit(per_second=0.001, burst=1), Clock())
    for number in range(5000):
        buckets.take(f"10.0.{number // 256}.{number % 256}")
    assert len(buckets._levels) == 4096
    assert takes(buckets, "10.0.19.135", 1) == 0  # the last one
    assert takes(buckets, "10.0.0.0", 1) == 1


# ── the rate, over sockets ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Running]:
    path = tmp_path / "predict.sock"
    buckets = Buckets(RateLimit(per_second=0.01, burst=2))
    with served(tmp_path, buckets=buckets, predict_path=path) as running:
        yield running


def test_a_client_that_asks_too_often_is_429(limited: Running) -> None:
    replies = [limited.ask("POST", INFER, json_request()) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[2].error == "too many requests from this client; try again later"
    assert 90 <= int(replies[2].headers["retry-after"]) <= 100
    path = "/v2/models/digits/predict"
    assert limited.ask("POST", path, {"instances": [[[0.0] * 8] * 8]}).status == 429
    assert (
        limited.ask("POST", "/v2/models/digits/feedback", {"id": "a", "label": "1"}).status == 429
    )
    assert limited.ask("GET", "/v2/health/ready").status == 200
    assert limited.ask("GET", "/v2/models/digits").status == 200


def test_addresses_and_users_have_rates_of_their_own(limited: Running) -> None:
    assert [limited.ask("POST", INFER, json_request()).status for _ in range(3)][-1] == 429
    other = http.client.HTTPConnection(
        "127.0.0.1", limited.port, timeout=10, source_address=("127.0.0.2", 0)
    )
    assert send(other, "POST", INFER, json_request()).status == 200
    other.close()
    predict = limited.unix_path.with_name("predict.sock")
    statuses = [limited.ask_unix(predict, "POST", INFER, json_request()).status for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_the_administrative_socket_has_no_rate(limited: Running) -> None:
    for _ in range(5):
        reply = limited.ask_unix(limited.unix_path, "POST", INFER, json_request())
        assert reply.status == 200


# ── the token ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Running]:
    with served(tmp_path, token=TOKEN, predict_path=tmp_path / "predict.sock") as running:
        yield running


def asked(running: Running, authorization: str | None, path: str = INFER) -> Reply:
    headers = {} if authorization is None else {"Authorization": authorization}
    if path == INFER:
        return running.ask("POST", path, json_request(), headers)
    return running.ask("GET", path, None, headers)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xe9\xff",
    ],
)
def test_without_the_token_every_request_is_refused_alike(
    authorization: str | None, guarded: Running
) -> None:
    """Also where there is no such path, so that nothing can be found out by asking."""
    asked(guarded, f"Bearer {TOKEN}")  # the path of the model is known from here on
    for path in (INFER, "/v2", "/v2/models/digits", "/metrics", "/v2/models/none", "/nothing"):
        reply = asked(guarded, authorization, path)
        assert (reply.status, reply.error) == (401, REFUSED)
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_token_opens_everything(scheme: str, guarded: Running) -> None:
    for path in (INFER, "/v2", "/metrics"):
        assert asked(guarded, f"{scheme} {TOKEN}", path).status == 200


def test_health_needs_no_token(guarded: Running) -> None:
    assert asked(guarded, None, "/v2/health/live").status == 200
    assert asked(guarded, "Bearer wrong", "/v2/health/ready").status == 200
    for path in ("/v2/health", "/v2/healthy/live", "/v2/models/digits?from=/v2/health/"):
        assert asked(guarded, None, path).status == 401
    for path in ("/v2/health/../models/digits", "/v2/health/live/../../models/digits"):
        assert asked(guarded, None, path).status == 404  # it is not resolved


def test_unix_sockets_need_no_token(guarded: Running) -> None:
    for name in ("agent.sock", "predict.sock"):
        path = guarded.unix_path.with_name(name)
        assert guarded.ask_unix(path, "POST", INFER, json_request()).status == 200


def test_a_wrong_token_is_counted_and_never_shown(
    guarded: Running, caplog: pytest.LogCaptureFixture
) -> None:
    asked(guarded, "Bearer sesame")
    text = asked(guarded, f"Bearer {TOKEN}", "/metrics").body.decode()
    assert 'skerry_errors_total{type="Unauthorized"} 1' in text
    for shown in (text, caplog.text):
        assert TOKEN not in shown and "sesame" not in shown


def test_a_token_is_compared_as_a_whole() -> None:
    check_token(TOKEN, b"Bearer " + TOKEN.encode())
    for wrong in (b"", b"Bearer", b"Bearer \0", b"Bearer " + TOKEN.encode() * 2):
        with pytest.raises(Unauthorized):
            check_token(TOKEN, wrong)


# ── Unix sockets ─────────────────────────────────────────────────────────────────────────────────


def other_group() -> grp.struct_group:
    """A group that new files do not have by themselves, if this user may give one."""
    if os.geteuid() == 0:
        return grp.getgrgid(1)
    numbers = [number for number in os.getgroups() if number != os.getegid()]
    return grp.getgrgid((numbers or [os.getegid()])[0])


@pytest.mark.parametrize("named", [True, False], ids=["group", "no group"])
def test_sockets_are_their_owner_s_and_a_group_s_if_one_is_named(
    named: bool, tmp_path: Path
) -> None:
    group = other_group()
    path = tmp_path / "predict.sock"
    name = group.gr_name if named else None
    with served(tmp_path, predict_path=path, predict_group=name) as running:
        about = path.stat()
        assert stat.S_IMODE(about.st_mode) == (0o660 if named else 0o600)
        if named:
            assert about.st_gid == group.gr_gid
        assert stat.S_IMODE(running.unix_path.stat().st_mode) == 0o600
        assert running.ask_unix(path, "POST", INFER, json_request()).status == 200
        for target in ("/status", "/openapi.json"):  # only on the other socket
            assert running.ask_unix(path, "GET", target).status == 404
            assert running.ask_unix(running.unix_path, "GET", target).status == 200
    assert not path.exists() and not running.unix_path.exists()


def test_an_unknown_group_is_one_clear_error_and_leaves_nothing(
    quick_serving: Running, tmp_path: Path
) -> None:
    path = tmp_path / "predict.sock"
    server = Server(DataPlane(), host=None, predict_path=path, predict_group="no-such-group")
    with pytest.raises(CannotListen, match=f"{path}: there is no group 'no-such-group'"):
        quick_serving.call(server.start())
    assert not path.exists()


def test_a_path_that_no_socket_can_have_is_one_clear_error(
    quick_serving: Running, tmp_path: Path
) -> None:
    for path in (tmp_path / "missing" / "a.sock", tmp_path / ("x" * 120)):
        with pytest.raises(CannotListen, match="cannot listen on") as caught:
            quick_serving.call(Server(DataPlane(), host=None, predict_path=path).start())
        assert "\n" not in str(caught.value)
