"""The command finds the control plane of a directory, and trusts its own authority."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from pathlib import Path

import pytest
import typer

from cloud.cli.connect import client, split_version
from cloud.services import initialise, open_services, write_secret
from cloud.settings import Settings
from fleet.client.errors import ApiError, Unreachable


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers 403: enough to see that the line stood."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_the_line_to_an_address_outside_this_machine_trusts_the_planes_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SKERRY_URL", "SKERRY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path / "cp"
    initialise(Settings(directory=directory))
    pair = open_services(Settings(directory=directory)).authority.issue_server(("127.0.0.1",))
    write_secret(tmp_path / "api.pem", pair.certificate_pem + pair.key_pem)
    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "api.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    about = {"url": f"https://127.0.0.1:{server.server_port}"}
    write_secret(directory / "control-plane.json", json.dumps(about))
    try:
        with client(directory) as api, pytest.raises(ApiError) as caught:
            api.overview()
        assert caught.value.status == 403
        (directory / "pki" / "ca.pem").unlink()
        with client(directory) as api, pytest.raises(Unreachable):
            api.overview()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "text", ["digits", "digits:", "digits:x", "digits:²", "digits:" + "9" * 5000]
)
def test_what_is_no_version_of_a_model_is_said(text) -> None:
    with pytest.raises(typer.BadParameter, match="MODEL:VERSION"):
        split_version(text)
