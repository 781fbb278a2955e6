"""When a certificate is renewed, and what happens when that fails; on a simulated clock."""

from __future__ import annotations

import datetime as dt
import random

import pytest
from cryptography import x509

from edge_agent.device.credentials import Credentials, read_certificate
from edge_agent.device.identity import certificate_request, new_key, write_key
from edge_agent.device.keys import load_key
from edge_agent.device.renewal import (
    FIRST_RETRY_S,
    LONGEST_SLEEP_S,
    MAX_RETRY_S,
    NoAnswer,
    Renewer,
    renew_at,
)
from edge_agent.wire.messages import RenewReply, RenewRequest
from fleet.enrolment.ca import CertificateAuthority

DAY_S = 86_400.0
START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Device:
    """A device whose control plane answers from memory."""

    def __init__(self, directory, renew_key="new") -> None:
        self.now = START.timestamp()
        self.authority = CertificateAuthority.open(
            directory / "pki", "test", clock=lambda: dt.datetime.fromtimestamp(self.now, dt.UTC)
        )
        self.requests: list[RenewRequest] = []
        self.reconnects = 0
        self.answers = True
        self.status = "ok"
        key = new_key()
        write_key(directory / "device.key", key)
        issued = self.authority.issue_device(certificate_request(key), "cam-1", days=90)
        (directory / "device.pem").write_text(issued.pem)
        self.credentials = Credentials(directory)
        self.renewer = Renewer(
            self.credentials, "cam-1", ca=self.authority.certificate_path, ask=self.ask,
            reconnect=self.reconnect, renew_key=renew_key, clock=lambda: self.now,
            rng=random.Random(1),
        )  # fmt: skip

    def ask(self, request: RenewRequest) -> RenewReply:
        self.requests.append(request)
        if not self.answers:
            raise NoAnswer("no line to the broker")
        pem = ""
        if request.csr_pem and self.status == "ok":
            pem = self.authority.issue_device(request.csr_pem, "cam-1", days=90).pem
        return RenewReply(id=request.id, status=self.status, certificate_pem=pem)

    def reconnect(self) -> None:
        self.reconnects += 1
        self.credentials.choose()
        self.credentials.connected()

    @property
    def certificate(self) -> x509.Certificate:
        return read_certificate(self.credentials.current.certificate)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def days_of_renewal(device, name: str) -> float:
    return (renew_at(device.certificate, name) - START.timestamp()) / DAY_S


def test_it_is_time_at_two_thirds_of_the_life_spread_over_the_fleet(device):
    days = sorted(days_of_renewal(device, f"cam-{n}") for n in range(300))
    assert 54 < days[0] < 57 and 62 < days[-1] < 65
    assert 58.5 < sum(days) / len(days) < 61
    assert days_of_renewal(device, "cam-7") == days_of_renewal(device, "cam-7")


def test_nothing_is_asked_before(device):
    due_at = renew_at(device.certificate, "cam-1")
    while device.now < due_at:
        pause_s = device.renewer.step()
        assert 1 <= pause_s <= LONGEST_SLEEP_S
        device.now += 12 * pause_s if device.now < due_at - DAY_S else pause_s
    assert device.requests == []
    device.renewer.step()
    assert len(device.requests) == 1


def test_then_a_new_key_is_certified_used_and_the_control_plane_told(device):
    old_key = load_key(device.credentials.current.key).public_key()
    old = device.certificate
    device.now += 70 * DAY_S
    device.renewer.step()
    assert device.reconnects == 1
    assert device.certificate.serial_number != old.serial_number
    assert load_key(device.credentials.current.key).public_key() != old_key
    assert device.renewer.step() == FIRST_RETRY_S
    asked, told = device.requests
    assert asked.csr_pem and not asked.serial
    assert told.serial == format(device.certificate.serial_number, "x") and not told.csr_pem
    device.renewer.step()
    assert len(device.requests) == 2


def test_the_key_may_stay_the_same(tmp_path):
    device = Device(tmp_path, "same")
    key = load_key(device.credentials.current.key).public_key()
    device.now += 70 * DAY_S
    device.renewer.step()
    assert device.reconnects == 1
    assert load_key(device.credentials.current.key).public_key() == key


def test_without_an_answer_it_asks_again_later_and_for_the_same_key(device):
    device.now += 61.5 * DAY_S + 4 * DAY_S
    device.answers = False
    pauses = [device.renewer.step() for _ in range(12)]
    assert FIRST_RETRY_S / 2 <= pauses[0] <= FIRST_RETRY_S
    assert MAX_RETRY_S / 2 <= pauses[-1] <= MAX_RETRY_S
    assert pauses[5] > pauses[0]
    keys = {
        x509.load_pem_x509_csr(request.csr_pem.encode()).public_key().public_numbers()
        for request in device.requests
    }
    assert len(keys) == 1
    device.answers = True
    device.renewer.step()
    assert device.reconnects == 1


def test_near_the_end_it_asks_more_often_and_after_it_goes_on(device, caplog):
    device.answers = False
    device.now += 90 * DAY_S - 3600
    assert [device.renewer.step() for _ in range(12)][-1] <= 3600 / 20
    device.now += 2 * 3600
    for _ in range(3):
        assert device.renewer.step() <= FIRST_RETRY_S
    expired = [each for each in caplog.messages if "identity.expired" in each]
    assert len(expired) == 1
    assert "skerry claims create --device cam-1" in expired[0]


@pytest.mark.parametrize("status", ["denied", "refused", "unavailable"])
def test_a_refusal_changes_nothing(device, status):
    device.now += 70 * DAY_S
    device.status = status
    assert device.renewer.step() <= FIRST_RETRY_S
    assert (device.reconnects, device.credentials.on_trial) == (0, False)


def test_a_certificate_that_is_not_ours_is_not_taken(device, tmp_path):
    device.now += 70 * DAY_S
    device.authority = CertificateAuthority.open(tmp_path / "stranger", "test")
    device.renewer.step()
    assert (device.reconnects, device.credentials.on_trial) == (0, False)


def test_a_clock_that_jumps_to_1970_does_nothing(device):
    device.now = 0.0
    assert device.renewer.step() > 0
    assert device.requests == []
