"""Enrolment against an HTTP server with a real authority, over http and https."""

from __future__ import annotations

import json
import ssl
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edge_agent.device.enrol import enrol, read_claim
from edge_agent.device.errors import (
    AlreadyEnrolled,
    BadClaim,
    EnrolmentRefused,
    NotEnrolled,
    Unreachable,
)
from edge_agent.device.identity import load_identity
from edge_agent.device.inventory import collect
from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest
from fleet.enrolment.ca import CertificateAuthority


class ControlPlane:
    """Answers `/v1/enrol` as the API does; `status` and `reply` override it."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.authority = authority
        self.requests: list[EnrolRequest] = []
        self.status, self.reply = 200, b""
        plane = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                plane.requests.append(EnrolRequest.decode(body))
                data = plane.reply or plane.answer(plane.requests[-1])
                self.send_response(plane.status if self.path == "/v1/enrol" else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.scheme = "http"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, request: EnrolRequest) -> bytes:
        name = request.name or "given"
        certificate = self.authority.issue_device(request.csr_pem, name)
        return EnrolReply(
            device_id=name, certificate_pem=certificate.pem,
            ca_pem=self.authority.certificate_pem, broker_host="127.0.0.1", broker_port=8883,
        ).encode()  # fmt: skip

    def over_tls(self, authority: CertificateAuthority, directory) -> None:
        pair = authority.issue_server(["127.0.0.1"])
        path = directory / "server.pem"
        path.write_text(pair.certificate_pem + pair.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https"

    def claim(self) -> ClaimFile:
        return ClaimFile(
            url=f"{self.scheme}://127.0.0.1:{self.port}", claim_id="c1", secret="s",
            profile="this-machine", ca_pem=self.authority.certificate_pem,
            image_root='{"image": 1}', director_root='{"director": 1}',
        )  # fmt: skip

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return CertificateAuthority.open(tmp_path_factory.mktemp("pki"), "test")


@pytest.fixture
def plane(authority):
    plane = ControlPlane(authority)
    yield plane
    plane.close()


@pytest.fixture
def inventory(tmp_path):
    return collect(tmp_path)


def test_a_claim_becomes_an_identity(plane, inventory, tmp_path):
    identity = enrol(tmp_path / "d", plane.claim(), inventory, "cam-1")
    assert identity == load_identity(tmp_path / "d")
    assert identity.membership.device_id == "cam-1"
    assert identity.membership.profile == "this-machine"
    assert identity.root_path("director").read_text() == '{"director": 1}'
    assert stat.S_IMODE(identity.key_path.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(identity.certificate_path.read_bytes())
    key = serialization.load_pem_private_key(identity.key_path.read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert plane.requests[0].inventory.cores >= 1
    assert "onnxruntime" in plane.requests[0].inventory.runtimes
    with pytest.raises(AlreadyEnrolled):
        enrol(tmp_path / "d", plane.claim(), inventory)


def test_a_refusal_is_told_and_leaves_no_identity_but_the_same_key(plane, inventory, tmp_path):
    plane.status, plane.reply = 403, json.dumps({"error": "the claim\nwas used"}).encode()
    with pytest.raises(EnrolmentRefused, match="the claim was used"):
        enrol(tmp_path / "d", plane.claim(), inventory)
    with pytest.raises(NotEnrolled, match="skerry-agent enrol"):
        load_identity(tmp_path / "d")
    key = (tmp_path / "d" / "device.key").read_bytes()
    plane.status, plane.reply = 200, b""
    enrol(tmp_path / "d", plane.claim(), inventory)
    assert (tmp_path / "d" / "device.key").read_bytes() == key


@pytest.mark.parametrize("reply", [b"{}", b"not json", b"[]"])
def test_an_answer_without_sense_is_refused(plane, inventory, tmp_path, reply):
    plane.reply = reply
    with pytest.raises(EnrolmentRefused):
        enrol(tmp_path / "d", plane.claim(), inventory)


def test_a_certificate_for_another_key_is_refused(plane, inventory, tmp_path, authority):
    from edge_agent.device.identity import certificate_request, new_key

    other = authority.issue_device(certificate_request(new_key()), "cam-1")
    plane.reply = EnrolReply(
        device_id="cam-1", certificate_pem=other.pem, ca_pem="", broker_host="h", broker_port=1
    ).encode()
    with pytest.raises(EnrolmentRefused, match="another key"):
        enrol(tmp_path / "d", plane.claim(), inventory)


def test_over_https_the_claims_authority_is_trusted_and_no_other(
    plane, inventory, tmp_path, authority
):
    plane.over_tls(authority, tmp_path)
    assert enrol(tmp_path / "d", plane.claim(), inventory).membership.device_id == "given"
    stranger = CertificateAuthority.open(tmp_path / "pki", "other")
    claim = plane.claim().model_copy(update={"ca_pem": stranger.certificate_pem})
    with pytest.raises(Unreachable, match="certificate"):
        enrol(tmp_path / "e", claim, inventory)
    assert len(plane.requests) == 1


def test_nobody_there_and_bad_names_are_one_clear_error(inventory, tmp_path, plane):
    claim = plane.claim().model_copy(update={"url": "http://127.0.0.1:1"})
    with pytest.raises(Unreachable, match="does not answer"):
        enrol(tmp_path / "d", claim, inventory)
    with pytest.raises(BadClaim, match="cannot be a name"):
        enrol(tmp_path / "d", claim, inventory, "Not A Slug")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"{", "not a claim file"),
        (b"{}", "not a claim file"),
    ],
)
def test_a_claim_file_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "claim.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadClaim, match=message):
        read_claim(path)


def test_a_claim_with_a_strange_address_is_refused(plane, tmp_path):
    path = tmp_path / "claim.json"
    path.write_bytes(plane.claim().model_copy(update={"url": "file:///etc"}).encode())
    with pytest.raises(BadClaim, match="neither http nor https"):
        read_claim(path)


@pytest.mark.parametrize("url", ["http://host:abc", "http://[::1", "https://", "http://h:99999"])
def test_a_claim_with_an_address_that_is_none_is_refused(plane, inventory, tmp_path, url):
    claim = plane.claim().model_copy(update={"url": url})
    path = tmp_path / "claim.json"
    path.write_bytes(claim.encode())
    with pytest.raises(BadClaim, match=r"claim\.json: the claim's address"):
        read_claim(path)
    with pytest.raises(BadClaim):
        enrol(tmp_path / "d", claim, inventory)


@pytest.mark.parametrize("ca_pem", ["", "no certificate"])
def test_a_claim_without_an_authority_is_refused_rather_than_any_trusted(
    plane, inventory, tmp_path, ca_pem
):
    claim = plane.claim().model_copy(update={"ca_pem": ca_pem})
    path = tmp_path / "claim.json"
    path.write_bytes(claim.encode())
    with pytest.raises(BadClaim, match="no certificate"):
        read_claim(path)
    https = claim.model_copy(update={"url": claim.url.replace("http:", "https:")})
    with pytest.raises(BadClaim, match="no certificate"):
        enrol(tmp_path / "d", https, inventory)
