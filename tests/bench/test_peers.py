"""Peers: exact versions in environments of their own; one that does not come up says why."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from bench.loads import environments, networks, peers
from bench.loads.errors import PeerUnavailable, ServerFailed
from bench.loads.networks import TINY, Bundle
from bench.loads.peers import PEERS, Peer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return networks.write(tmp_path_factory.mktemp("peers") / "1", TINY)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_version_of_an_environment_is_pinned_and_fit_for_a_cpu(peer: Peer) -> None:
    lines = environments.pins_of(peer.pins).split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert {peer.package, "onnxruntime"} <= names
    assert not names & {"torch", "tensorflow", "jax"} and not any("cuda" in name for name in names)
    assert set(peer.versions()) == {peer.package, "onnxruntime"}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_there_to_run_and_is_asked_in_json(peer: Peer) -> None:
    for part in peer.command:
        if part.endswith(".py"):
            assert Path(part).is_file()
    assert peer.kinds[0] == "json"
    assert peer.request("json").path.startswith("/")


def test_all_peers_run_the_same_version_of_the_runtime() -> None:
    assert len({peer.versions()["onnxruntime"] for peer in PEERS}) == 1


def test_an_environment_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    [peer, *_] = PEERS
    python = tmp_path / peer.pins / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    digest = hashlib.sha256(environments.pins_of(peer.pins).encode()).hexdigest()
    (tmp_path / peer.pins / "pins.sha256").write_text(digest)
    assert environments.environment(peer.pins, tmp_path) == python


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("a file")
    with pytest.raises(PeerUnavailable, match="Not a directory"):
        environments.environment(PEERS[0].pins, in_the_way)


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_BENCH_CACHE", str(tmp_path))
    assert environments.cache_directory() == tmp_path
    monkeypatch.delenv("SKERRY_BENCH_CACHE")
    assert environments.cache_directory().parts[-3:] == (".cache", "skerry", "bench-peers")


def test_a_peer_that_does_not_start_says_why(bundle: Bundle) -> None:
    broken = Peer("broken", "fastapi", ("-c", "raise SystemExit('no such port')"), "fastapi")
    with (
        pytest.raises(ServerFailed, match="broken: it ended with exit code 1: no such port"),
        peers.serving(broken, Path(sys.executable), bundle),
    ):
        pass


def test_a_peer_that_answers_wrongly_is_not_measured(bundle: Bundle, tmp_path: Path) -> None:
    liar = tmp_path / "liar.py"
    liar.write_text(
        "import http.server, sys\n"
        "class Liar(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.rfile.read(int(self.headers['Content-Length']))\n"
        '        body = b\'{"outputs": [{"name": "logits", "shape": [1, 10],'
        ' "data": [0,0,0,0,0,0,0,0,0,0]}]}\'\n'
        "        self.send_response(200)\n"
        "        self.send_header('Content-Length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Liar).serve_forever()\n"
    )
    peer = Peer("liar", "fastapi", (str(liar), "{port}"), "fastapi")
    with (
        pytest.raises(ServerFailed, match="liar: a wrong answer"),
        peers.serving(peer, Path(sys.executable), bundle),
    ):
        pass
