"""A signed repository in memory, served by a real HTTP server on the loopback address."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")

Body = bytes | Callable[["Handler"], None]
"""What a path answers with: bytes, or a function that writes the whole response."""


class WebRepository:
    """Every version of every role that was published, one key each, and target files."""

    def __init__(self) -> None:
        self.files: dict[str, Body] = {}
        self.requests: list[str] = []
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
        self.signed: dict[str, Any] = {
            "root": Root(expires=expires),
            "timestamp": Timestamp(expires=expires),
            "snapshot": Snapshot(expires=expires),
            "targets": Targets(expires=expires),
        }
        self.signers: dict[str, list[CryptoSigner]] = {}
        for role in TOP_LEVEL:
            self.rotate(role)
        self.publish("root", "targets", bump=False)
        self.seal(bump=False)

    def rotate(self, role: str, count: int = 1) -> None:
        """New keys of a top-level role; all of them must sign."""
        root = self.signed["root"]
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in self.signers[role]:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = count

    def publish(
        self, *roles: str, bump: bool = True, signers: list[CryptoSigner] | None = None
    ) -> None:
        """Sign the next version of each role; `seal` makes snapshot and timestamp follow."""
        for role in roles:
            signed = self.signed[role]
            signed.version += bump
            metadata: Metadata[Any] = Metadata(signed)
            for signer in signers or self.signers[role]:
                metadata.sign(signer, append=True)
            data = metadata.to_bytes()
            name = "timestamp" if role == "timestamp" else f"{signed.version}.{quote(role, '')}"
            self.files[f"/metadata/{name}.json"] = data
            meta = MetaFile.from_data(signed.version, data, ["sha256"])
            if role == "snapshot":
                self.signed["timestamp"].snapshot_meta = meta
            elif role not in ("root", "timestamp"):
                self.signed["snapshot"].meta[f"{role}.json"] = meta

    def seal(self, *, bump: bool = True) -> None:
        self.publish("snapshot", "timestamp", bump=bump)

    def add_target(self, path: str, data: bytes, role: str = "targets") -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        self.signed[role].targets[path] = target
        self.files[f"/targets/{target.get_prefixed_paths()[0]}"] = data

    def delegate(self, role: str, *paths: str) -> None:
        """Give `paths` to a role of its own."""
        targets = self.signed["targets"]
        if targets.delegations is None:
            targets.delegations = Delegations({}, {})
        targets.delegations.roles[role] = DelegatedRole(role, [], 1, False, list(paths))
        self.signers[role] = [CryptoSigner.generate_ed25519()]
        targets.add_key(self.signers[role][0].public_key, role)
        self.signed[role] = Targets(expires=targets.expires)

    @contextmanager
    def served(self) -> Iterator[str]:
        """The server's address, while it runs."""
        server = _Server(self)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repository: WebRepository) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = repository

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up on an endless answer is what the test wants."""


class Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path if self.path.startswith("/metadata/") else unquote(self.path)
        self.server.repository.requests.append(path)
        body = self.server.repository.files.get(path)
        if body is None:
            self.send_error(404)
        elif callable(body):
            body(self)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal of a test run."""
