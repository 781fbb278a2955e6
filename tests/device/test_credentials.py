"""Pairs of key and certificate: on trial, in use, before; one state after every power cut."""

from __future__ import annotations

import pytest

from edge_agent.device.credentials import (
    TRIALS,
    Credentials,
    check_certificate,
    current_pair,
)
from edge_agent.device.errors import BadCertificate
from edge_agent.device.identity import certificate_request, new_key, write_key
from edge_agent.device.keys import load_key, open_key
from fleet.enrolment.ca import CertificateAuthority


@pytest.fixture
def directory(tmp_path):
    write_key(tmp_path / "device.key", new_key())
    (tmp_path / "device.pem").write_text("first")
    return tmp_path


def renew(credentials: Credentials) -> None:
    open_key(credentials.draft() / "device.key")
    credentials.offer("second")


def chosen(credentials: Credentials) -> str:
    return credentials.choose()[0].read_text()


def test_a_new_pair_takes_its_place_once_the_broker_has_let_it_in(directory):
    credentials = Credentials(directory)
    assert chosen(credentials) == "first"
    credentials.connected()
    renew(credentials)
    assert current_pair(directory).certificate.read_text() == "first"
    assert chosen(credentials) == "second"
    credentials.connected()
    assert current_pair(directory).certificate.read_text() == "second"
    assert not credentials.settled
    assert (directory / "device.key").exists()  # until the control plane knows
    credentials.settle()
    assert credentials.settled
    assert not (directory / "device.key").exists()
    assert len(list((directory / "pairs").iterdir())) == 1
    assert current_pair(directory).key.stat().st_mode & 0o077 == 0


def test_a_pair_on_trial_is_tried_in_turn_with_the_present_one(directory):
    credentials = Credentials(directory)
    renew(credentials)
    assert [chosen(credentials) for _ in range(4)] == ["second", "first", "second", "first"]
    # as after a restart in the middle of it
    assert [chosen(Credentials(directory)) for _ in range(2)] == ["second", "second"]


def test_a_pair_that_is_refused_again_and_again_is_given_up(directory):
    credentials = Credentials(directory)
    renew(credentials)
    for _ in range(TRIALS):
        assert credentials.on_trial
        assert chosen(credentials) == "second"
        assert chosen(credentials) == "first"
        credentials.connected()
    assert not credentials.on_trial
    assert chosen(credentials) == "first"
    assert list((directory / "pairs").iterdir()) == []


def test_a_key_that_nobody_answered_for_is_asked_for_again(directory):
    first = open_key(Credentials(directory).draft() / "device.key")
    again = open_key(Credentials(directory).draft() / "device.key")
    assert again.public_key() == first.public_key()


def test_a_key_that_was_half_written_is_drawn_anew(directory):
    path = Credentials(directory).draft() / "device.key"
    path.write_bytes(b"-----BEGIN PRIV")
    assert open_key(path).public_key()


def test_the_present_key_may_be_kept(directory):
    kept = open_key(directory / "next.key", like=directory / "device.key", copy=True)
    assert kept.public_key() == load_key(directory / "device.key").public_key()


def test_a_new_enrolment_replaces_whatever_there_was(directory):
    credentials = Credentials(directory)
    renew(credentials)
    open_key(credentials.draft() / "device.key")
    credentials.adopt("third")
    assert current_pair(directory).certificate.read_text() == "third"
    assert not credentials.on_trial
    assert len(list((directory / "pairs").iterdir())) == 1


def test_a_certificate_that_is_not_this_devices_is_refused(tmp_path):
    ours = CertificateAuthority.open(tmp_path / "ours", "test")
    theirs = CertificateAuthority.open(tmp_path / "theirs", "test")
    key, other = new_key(), new_key()

    def check(pem: str) -> None:
        check_certificate(pem, ours.certificate_path, "cam-1", key.public_key())

    check(ours.issue_device(certificate_request(key), "cam-1").pem)
    for pem, message in (
        (theirs.issue_device(certificate_request(key), "cam-1").pem, "our authority"),
        (ours.issue_device(certificate_request(key), "cam-2").pem, "another device"),
        (ours.issue_device(certificate_request(other), "cam-1").pem, "another key"),
        ("garbage", "our authority"),
    ):
        with pytest.raises(BadCertificate, match=message):
            check(pem)
