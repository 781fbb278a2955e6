"""The certificate authority: what it signs, what it refuses, and what it keeps."""

from __future__ import annotations

import datetime as dt
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.enrolment.ca import CLIENT_DAYS, CertificateAuthority
from fleet.enrolment.errors import AuthorityUnreadable, BadCertificateRequest, ReservedName


@pytest.fixture
def authority(tmp_path):
    return CertificateAuthority.open(tmp_path / "pki", "secret")


def request(key=None, *, name: str = "whatever", extension: bool = False) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    if extension:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    signed = builder.sign(key, algorithm)
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def test_a_device_gets_a_client_certificate_for_its_id_and_nothing_it_asked_for(authority):
    csr = request(name="control-plane", extension=True)
    issued = authority.issue_device(csr, "cam-1", days=10)
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["cam-1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca
    assert issued.serial == format(certificate.serial_number, "x")
    assert issued.expires_at == certificate.not_valid_after_utc.timestamp()
    ca = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    certificate.verify_directly_issued_by(ca)


@pytest.mark.parametrize("name", ["control-plane", "localhost", "a/b", "+", "", "A", "#", "x" * 64])
def test_a_name_of_the_control_plane_or_one_that_breaks_topics_is_refused(authority, name):
    with pytest.raises(ReservedName):
        authority.issue_device(request(), name)


def tampered() -> str:
    lines = request().splitlines()
    body = list(lines[-2])
    body[5] = "A" if body[5] != "A" else "B"
    lines[-2] = "".join(body)
    return "\n".join(lines)


@pytest.mark.parametrize(
    "csr",
    [
        "",
        "not pem",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
        request(rsa.generate_private_key(65537, 2048)),
        request(ec.generate_private_key(ec.SECP384R1())),
        request(ed25519.Ed25519PrivateKey.generate()),
        tampered(),
        request() + "\n" * 8192,
    ],
    ids=["empty", "text", "garbage", "rsa", "p384", "ed25519", "tampered", "too-large"],
)
def test_a_request_that_cannot_be_trusted_is_refused(authority, csr):
    with pytest.raises(BadCertificateRequest):
        authority.issue_device(csr, "cam-1")


def test_the_authority_is_the_same_when_opened_again_and_its_key_is_encrypted(tmp_path):
    first = CertificateAuthority.open(tmp_path, "secret")
    assert CertificateAuthority.open(tmp_path, "secret").certificate_pem == first.certificate_pem
    key = tmp_path / "ca.key"
    assert b"ENCRYPTED" in key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(AuthorityUnreadable, match="SKERRY_PASSPHRASE"):
        CertificateAuthority.open(tmp_path, "another")
    key.write_bytes(b"damaged")
    with pytest.raises(AuthorityUnreadable):
        CertificateAuthority.open(tmp_path, "secret")


def test_our_own_certificate_is_kept_until_it_nears_its_end(tmp_path):
    now = [dt.datetime(2030, 1, 1, tzinfo=dt.UTC)]
    authority = CertificateAuthority.open(tmp_path, "secret", clock=lambda: now[0])
    first = authority.client_files().chain.read_bytes()
    assert stat.S_IMODE(authority.client_files().chain.stat().st_mode) == 0o600
    assert authority.client_files().chain.read_bytes() == first
    now[0] += dt.timedelta(days=CLIENT_DAYS - 29)
    assert authority.client_files().chain.read_bytes() != first


def test_a_server_certificate_names_hosts_and_addresses(authority):
    pair = authority.issue_server(["127.0.0.1", "edge.example"])
    certificate = x509.load_pem_x509_certificate(pair.certificate_pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == ["edge.example"]
    assert "KEY" not in repr(pair)


def test_a_name_with_a_line_feed_is_refused(authority):
    for name in ("control-plane\n", "cam-1\n"):
        with pytest.raises(ReservedName):
            authority.issue_device(request(), name)


def test_several_threads_write_without_treading_on_each_other(authority):
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(authority.revoke, [format(n + 1, "x")]) for n in range(64)]:
            done.result()
    crl = x509.load_pem_x509_crl(authority.crl_path.read_bytes())
    assert len(list(crl)) == 1
    assert not list(authority.crl_path.parent.glob(".*.tmp"))


def test_those_who_start_at_once_get_one_authority(tmp_path):
    start = threading.Barrier(6)

    def open_it(_number: int) -> str:
        start.wait()
        authority = CertificateAuthority.open(tmp_path / "pki", "secret")
        certificate = x509.load_pem_x509_certificate(
            authority.issue_device(request(), "cam-1").pem.encode()
        )
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate((tmp_path / "pki" / "ca.pem").read_bytes())
        )
        return authority.certificate_pem

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(open_it, range(6)))) == 1


def test_a_servers_certificate_is_kept_until_it_has_to_be_another(tmp_path):
    now = [dt.datetime.now(dt.UTC)]
    authority = CertificateAuthority.open(tmp_path / "ca", "secret", clock=lambda: now[0])
    chain = tmp_path / "server.pem"
    assert authority.renew_server(chain, ("localhost", "127.0.0.1"))
    assert chain.stat().st_mode & 0o777 == 0o600
    assert not authority.renew_server(chain, ("127.0.0.1", "localhost"))
    assert authority.renew_server(chain, ("example.org",))
    now[0] += dt.timedelta(days=360)
    assert not authority.renew_server(chain, ("example.org",))
    now[0] += dt.timedelta(days=10)
    assert authority.renew_server(chain, ("example.org",))
    other = CertificateAuthority.open(tmp_path / "other", "secret", clock=lambda: now[0])
    assert other.renew_server(chain, ("example.org",))
    chain.write_text("damaged")
    assert other.renew_server(chain, ("example.org",))
