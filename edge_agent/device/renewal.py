"""Renewing the certificate in good time, over the line that the present one opens.

At two thirds of its life, a little earlier or later by the device's name so that a fleet that was
enrolled in one hour does not come back in one hour, a new key is drawn (or the present one kept), a
certificate is asked for, and the connection is made anew with it (`credentials`).  Whatever fails
is tried again with growing, jittered pauses, which become shorter as the end comes near.

A device whose certificate has ended goes on serving; a person lets it come back by a claim.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from pydantic import JsonValue

from edge_agent.device.credentials import (
    Credentials,
    check_certificate,
    read_certificate,
)
from edge_agent.device.errors import DeviceError
from edge_agent.device.keys import open_key
from edge_agent.link.errors import LinkError
from edge_agent.wire.messages import RenewReply, RenewRequest

log = logging.getLogger("skerry.identity")

SHARE_OF_LIFE: Final = 2 / 3
JITTER: Final = 0.05
"""Of the life, to either side."""
FIRST_RETRY_S: Final = 60.0
MAX_RETRY_S: Final = 6 * 3600.0
LONGEST_SLEEP_S: Final = 3600.0
"""The wall clock may jump; so it is looked at again."""

RenewKey = Literal["new", "same"]
Ask = Callable[[RenewRequest], RenewReply]
"""Sends a request and waits for its answer; raises `LinkError` when none comes."""


class NoAnswer(LinkError):
    """The control plane says no, or not now."""


def renew_at(certificate: x509.Certificate, device_id: str) -> float:
    """When a certificate is to be renewed, in seconds since the epoch; the same at each start."""
    begin = certificate.not_valid_before_utc.timestamp()
    life_s = certificate.not_valid_after_utc.timestamp() - begin
    digest = hashlib.sha256(f"{device_id}/{certificate.serial_number:x}".encode()).digest()
    offset = int.from_bytes(digest[:4], "big") / 0xFFFF_FFFF * 2 - 1
    return begin + life_s * (SHARE_OF_LIFE + JITTER * offset)


class Renewer:
    """See the module.  `run` is the body of a thread."""

    def __init__(
        self,
        credentials: Credentials,
        device_id: str,
        *,
        ca: Path,
        ask: Ask,
        reconnect: Callable[[], None],
        renew_key: RenewKey = "new",
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            ca: the authority that the device trusts.
            ask: see `Ask`.
            reconnect: ends the connection, which is then made anew.
            renew_key: whether a renewal draws a new key.
            clock: seconds since the epoch.
        """
        self._credentials = credentials
        self._device_id = device_id
        self._ca = ca
        self._ask = ask
        self._reconnect = reconnect
        self._renew_key = renew_key
        self._clock = clock
        self._rng = rng or random.Random()
        self._failures = 0
        self._told_of_the_end = False
        self._changed = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Renew when it is time, until `stop`."""
        pause_s = 0.0
        while not self._stopping.is_set():
            self._changed.wait(pause_s)
            self._changed.clear()
            if self._stopping.is_set():
                return
            try:
                pause_s = self.step()
            except Exception:
                log.exception("identity.renewal_failed")
                pause_s = MAX_RETRY_S

    def wake(self) -> None:
        """A connection was made: what waited for one goes on."""
        self._changed.set()

    def stop(self) -> None:
        self._stopping.set()
        self._changed.set()

    def status(self) -> dict[str, JsonValue]:
        """The present certificate, and when it is to be renewed, in seconds since the epoch."""
        try:
            certificate = read_certificate(self._credentials.current.certificate)
        except DeviceError as error:
            return {"error": str(error)}
        return {
            "serial": format(certificate.serial_number, "x"),
            "expires_at": certificate.not_valid_after_utc.timestamp(),
            "renewed_from": renew_at(certificate, self._device_id),
        }

    def step(self) -> float:
        """Do what is due; returns in how many seconds to look again.

        Raises:
            DeviceError: the identity on the disk cannot be used.
        """
        now = self._clock()
        certificate = read_certificate(self._credentials.current.certificate)
        left_s = certificate.not_valid_after_utc.timestamp() - now
        if left_s <= 0 and not self._told_of_the_end:
            self._told_of_the_end = True
            log.error(
                "identity.expired device=%s hint=%r", self._device_id,
                f"skerry claims create --device {self._device_id}",
            )  # fmt: skip
        try:
            if not self._credentials.settled:
                self._tell(certificate)
            elif self._credentials.on_trial:
                self._reconnect()
                return self._pause_s(left_s)
            elif now >= renew_at(certificate, self._device_id):
                self._renew(certificate)
                self._reconnect()
            else:
                self._told_of_the_end = False
                self._failures = 0
                due_s = renew_at(certificate, self._device_id) - now
                return min(max(due_s, 1.0), LONGEST_SLEEP_S)
        except (LinkError, DeviceError) as error:
            log.warning("identity.not_renewed failures=%d cause=%s", self._failures + 1, error)
            return self._pause_s(left_s)
        self._failures = 0
        return FIRST_RETRY_S

    def _pause_s(self, left_s: float) -> float:
        longest_s = min(max(left_s / 20, FIRST_RETRY_S), MAX_RETRY_S)
        pause_s = min(FIRST_RETRY_S * 2.0 ** min(self._failures, 16), longest_s)
        self._failures += 1
        return pause_s * self._rng.uniform(0.5, 1.0)

    def _tell(self, certificate: x509.Certificate) -> None:
        """The control plane is to know that the new certificate is in use."""
        serial = format(certificate.serial_number, "x")
        reply = self._ask(RenewRequest(id=uuid.uuid4().hex, serial=serial))
        if reply.status != "ok":
            raise NoAnswer(f"{reply.status} {reply.detail}".strip())
        self._credentials.settle()

    def _renew(self, certificate: x509.Certificate) -> None:
        """Ask for a certificate and put it on trial.

        Raises:
            LinkError: none came, or a refusal.
            BadCertificate: what came is not ours.
        """
        directory = self._credentials.draft()
        key = open_key(
            directory / "device.key",
            like=self._credentials.current.key,
            copy=self._renew_key == "same",
        )
        reply = self._ask(RenewRequest(id=uuid.uuid4().hex, csr_pem=key.request()))
        if reply.status != "ok":
            raise NoAnswer(f"{reply.status} {reply.detail}".strip())
        check_certificate(reply.certificate_pem, self._ca, self._device_id, key.public_key())
        self._credentials.offer(reply.certificate_pem)
        log.info("identity.certificate_received device=%s", self._device_id)
