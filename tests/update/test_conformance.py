"""The command line that an outside suite drives, against repositories on a real web server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.api.metadata import Metadata

from edge_agent.update.conformance import main
from edge_agent.update.http_fetch import HttpFetcher
from tests.update.web_repository import Handler, WebRepository

FAR = 2**31 - 1


class Client:
    """The command line with the arguments of one test."""

    def __init__(self, repository: WebRepository, address: str, directory: Path) -> None:
        self.repository = repository
        self.metadata = directory / "metadata"
        self.targets = directory / "targets"
        self.root = directory / "initial_root.json"
        root = repository.files["/metadata/1.root.json"]
        assert isinstance(root, bytes)
        self.root.write_bytes(root)
        self.arguments = {
            "--metadata-dir": str(self.metadata),
            "--metadata-url": f"{address}/metadata/",
            "--target-base-url": f"{address}/targets/",
            "--target-dir": str(self.targets),
        }

    def line(self, command: str, *options: str) -> list[str]:
        pairs = {**self.arguments, **dict(zip(options[::2], options[1::2], strict=True))}
        return [*(part for pair in pairs.items() for part in pair), command]

    def init(self) -> int:
        return main(["--metadata-dir", str(self.metadata), "init", str(self.root)])

    def refresh(self) -> int:
        return main(self.line("refresh"))

    def download(self, name: str) -> int:
        return main(self.line("download", "--target-name", name))

    def version(self, role: str) -> int | None:
        path = self.metadata / f"{role}.json"
        return Metadata.from_bytes(path.read_bytes()).signed.version if path.exists() else None

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.targets.glob("*"))]


@pytest.fixture
def repository() -> WebRepository:
    return WebRepository()


@pytest.fixture
def client(repository: WebRepository, tmp_path: Path) -> Iterator[Client]:
    with repository.served() as address:
        client = Client(repository, address, tmp_path)
        assert client.init() == 0
        yield client


# ── the three commands ───────────────────────────────────────────────────────────────────────────


def test_init_asks_nothing_and_keeps_the_root(client, repository) -> None:
    assert repository.requests == []
    assert (client.metadata / "root.json").read_bytes() == client.root.read_bytes()


def test_a_first_refresh_asks_for_each_role_once(client, repository) -> None:
    assert client.refresh() == 0
    names = ("2.root", "timestamp", "1.snapshot", "1.targets")
    assert repository.requests == [f"/metadata/{name}.json" for name in names]
    roles = ("root", "timestamp", "snapshot", "targets")
    assert [client.version(role) for role in roles] == [1, 1, 1, 1]


def test_a_second_refresh_asks_for_root_and_timestamp_only(client, repository) -> None:
    assert client.refresh() == 0
    repository.requests.clear()
    assert client.refresh() == 0
    assert repository.requests == ["/metadata/2.root.json", "/metadata/timestamp.json"]


def test_downloads_once_and_again_when_the_target_changes(client, repository) -> None:
    for content in (b"first", b"second"):
        repository.add_target("path/to/a file?#.txt", content)
        repository.publish("targets")
        repository.seal()
        for _ in range(2):
            repository.requests.clear()
            assert client.download("path/to/a file?#.txt") == 0
            assert client.downloaded() == [content]
    assert not [path for path in repository.requests if path.startswith("/targets/")]


def test_downloads_what_a_delegated_role_names(client, repository) -> None:
    repository.delegate("../unusual role", "releases/*")
    repository.add_target("releases/1.bin", b"one", "../unusual role")
    repository.publish("../unusual role", "targets")
    repository.seal()
    assert client.download("releases/1.bin") == 0
    assert client.downloaded() == [b"one"]
    names = {path.name for path in client.metadata.glob("*.json")}
    assert "..%2Funusual role.json" in names or "..%2Funusual%20role.json" in names


def test_the_command_line_in_a_process_of_its_own(client) -> None:
    line = client.line("download", "--target-name", "nothing")
    command = [sys.executable, "-m", "edge_agent.update.conformance", *line]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, client.version("targets")) == (1, 1)
    assert refused.stderr == "download: the repository does not name nothing\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metadata-url", "http://127.0.0.1:1", "refresh"], "refresh: "),
        (["refresh"], "refresh: --metadata-url is missing"),
        (["--metadata-url", "x", "download"], "download: download needs --target-name"),
        (["--metadata-url", "file:///etc", "refresh"], "refresh: repository: file:///etc"),
        (["init", "/nowhere/root.json"], "init: [Errno 2]"),
    ],
)
def test_a_command_that_cannot_be_done_ends_in_one_line(client, capsys, arguments, message) -> None:
    assert main(["--metadata-dir", str(client.metadata), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


# ── cases of the specification ───────────────────────────────────────────────────────────────────


def test_a_root_that_does_not_parse_is_refused_before_any_request(client, repository) -> None:
    root = json.loads(client.root.read_bytes())
    del root["signed"]["version"]
    client.root.write_text(json.dumps(root))
    client.init()
    assert client.refresh() == 1
    assert repository.requests == []


def test_attack_01_timestamp_rollback(client, repository) -> None:
    old = repository.files["/metadata/timestamp.json"]
    repository.publish("timestamp")
    assert client.refresh() == 0
    repository.files["/metadata/timestamp.json"] = old
    assert client.refresh() == 1
    assert client.version("timestamp") == 2


def test_attack_01_rollback_with_an_emptied_cache(client, repository) -> None:
    old = repository.files["/metadata/timestamp.json"]
    repository.seal()
    assert client.refresh() == 0
    repository.files["/metadata/timestamp.json"] = old
    for path in client.metadata.glob("*.json"):
        path.unlink()
    assert client.refresh() == 1


def test_attack_01_snapshot_rollback(client, repository) -> None:
    repository.seal()
    assert client.refresh() == 0
    repository.signed["snapshot"].version = 1
    repository.publish("snapshot", bump=False)
    repository.publish("timestamp")
    assert client.refresh() == 1
    assert client.version("snapshot") == 2


def test_attack_03_targets_rollback(client, repository) -> None:
    repository.publish("targets")
    repository.seal()
    assert client.refresh() == 0
    repository.signed["targets"].version = 1
    repository.publish("targets", bump=False)
    repository.seal()
    assert client.refresh() == 1
    assert client.version("targets") == 2


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_attack_02_expired_metadata(client, repository, role) -> None:
    assert client.refresh() == 0
    repository.signed[role].expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    repository.publish(role)
    if role != "root":
        repository.seal()
    assert client.refresh() == 1
    assert client.version(role) == (2 if role == "root" else 1)


@pytest.mark.skipif(shutil.which("faketime") is None, reason="Debian's faketime is missing")
def test_what_expired_here_is_renewed_from_there(client, repository) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
    repository.signed["timestamp"].expires = soon
    repository.seal()
    assert client.refresh() == 0
    repository.signed["timestamp"].expires = soon + timedelta(days=20)
    repository.seal()
    command = [sys.executable, "-m", "edge_agent.update.conformance", *client.line("refresh")]
    later = ["faketime", "-f", "+18d", *command]
    assert subprocess.run(later, timeout=60, check=False).returncode == 0
    assert client.version("timestamp") == 3


def test_a_hash_that_is_not_the_signed_one(client, repository) -> None:
    assert client.refresh() == 0
    repository.publish("targets")
    repository.seal()
    data = repository.files["/metadata/2.targets.json"]
    assert isinstance(data, bytes)
    repository.files["/metadata/2.targets.json"] = data + b" "
    assert client.refresh() == 1
    assert client.version("targets") == 1


def test_a_target_that_is_not_the_signed_one_is_not_kept(client, repository) -> None:
    repository.add_target("file", b"honest")
    repository.publish("targets")
    repository.seal()
    path = next(path for path in repository.files if path.startswith("/targets/"))
    for lie in (b"forged", b"honest and more", b"hon"):
        repository.files[path] = lie
        assert client.download("file") == 1
        assert client.downloaded() == []


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_attack_11_fast_forward_recovery(client, repository, role) -> None:
    repository.signed[role].version = FAR - 1
    repository.publish(role)
    if role == "targets":
        repository.seal()
    if role == "snapshot":
        repository.publish("timestamp")
    assert client.refresh() == 0
    assert client.version(role) == FAR
    repository.signed[role].version = 1
    repository.rotate("snapshot")
    repository.rotate("timestamp")
    repository.publish("root")
    if role == "targets":
        repository.publish("targets")
    repository.seal()
    assert client.refresh() == 0
    assert client.version(role) == 2


def test_attack_08_root_rotation_needs_old_and_new_keys(client, repository) -> None:
    assert client.refresh() == 0
    old = repository.signers["root"]
    repository.rotate("root", 3)
    new = repository.signers["root"]
    for count, signers in enumerate((old, new, old + new[:2])):
        repository.publish("root", bump=count == 0, signers=signers)
        assert client.refresh() == 1
        assert client.version("root") == 1
    repository.publish("root", bump=False, signers=old + new)
    assert client.refresh() == 0
    repository.publish("root")
    assert client.refresh() == 0
    assert client.version("root") == 3


def test_attack_10_a_revoked_key_signs_nothing(client, repository) -> None:
    assert client.refresh() == 0
    stolen = repository.signers["timestamp"]
    repository.rotate("timestamp")
    repository.publish("root")
    repository.publish("timestamp", signers=stolen)
    assert client.refresh() == 1
    assert (client.version("root"), client.version("timestamp")) == (2, 1)


# ── the line ─────────────────────────────────────────────────────────────────────────────────────


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


@pytest.mark.parametrize("name", ["2.root", "timestamp", "2.snapshot", "2.targets"])
def test_attack_16_endless_metadata(client, repository, name) -> None:
    assert client.refresh() == 0
    repository.publish("targets")
    repository.seal()
    repository.files[f"/metadata/{name}.json"] = endless
    assert client.refresh() == 1


def test_attack_16_an_endless_target(client, repository) -> None:
    repository.add_target("file", b"honest")
    repository.publish("targets")
    repository.seal()
    path = next(path for path in repository.files if path.startswith("/targets/"))
    repository.files[path] = endless
    assert client.download("file") == 1
    assert client.downloaded() == []


@pytest.mark.parametrize("status", [301, 403, 410, 500, 503])
def test_only_not_found_is_not_found(client, repository, status) -> None:
    """A root that is withheld must not be taken for one that does not exist."""
    repository.publish("root")

    def refuse(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Location", "/metadata/1.root.json")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    repository.files["/metadata/2.root.json"] = refuse
    assert client.refresh() == 1
    assert client.version("timestamp") is None


def cut_short(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"x" * 10)
    handler.close_connection = True


def gibberish(handler: Handler) -> None:
    handler.wfile.write(b"no such protocol\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize("answer", [cut_short, gibberish])
def test_a_broken_answer_is_an_error(repository, answer) -> None:
    repository.files["/file"] = answer
    with repository.served() as address, pytest.raises(DownloadError) as error:
        HttpFetcher().download_bytes(f"{address}/file", 2000)
    assert not isinstance(error.value, DownloadHTTPError)


def test_attack_18_a_silent_server_is_given_up(repository) -> None:
    released = threading.Event()

    def wait(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.flush()
        released.wait(30)

    repository.files["/file"] = wait
    with repository.served() as address:
        with pytest.raises(DownloadError):
            HttpFetcher(timeout_s=0.1).download_bytes(f"{address}/file", 2000)
        released.set()


def test_attack_18_a_trickle_is_given_up_at_the_deadline(repository) -> None:
    ticks = iter(range(1000))
    repository.files["/file"] = endless
    fetcher = HttpFetcher(deadline_s=5, clock=lambda: float(next(ticks)))
    with repository.served() as address, pytest.raises(DownloadError, match="took over 5 s"):
        fetcher.download_bytes(f"{address}/file", 1 << 30)
