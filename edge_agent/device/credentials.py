"""The device's pairs of key and certificate: the one in use, and one on trial after a renewal.

    device.key, device.pem      the pair of the enrolment
    pairs/NAME/device.key, .pem  pairs of renewals
    device.pair                  which is which: written whole, so that a power cut leaves one state

Rules:
    * A key is on the disk before anybody hears of it, and asked for until there is an answer.
    * A new pair is on trial: the connection is tried with it and with the present one in turn.  It
      takes the present one's place when the broker has let it in, not before.
    * The pair before stays until the control plane knows that the new one is in use.
    * A pair that is refused `TRIALS` times while the present one is let in is given up.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.device.errors import BadCertificate, NotEnrolled
from edge_agent.disk import make_directories, write_whole
from edge_agent.wire.base import WireModel
from edge_agent.wire.errors import WireError

log = logging.getLogger("skerry.identity")

POINTER: Final = "device.pair"
TRIALS: Final = 3


class _Pointer(WireModel):
    """Names below `pairs/`; empty is the pair of the enrolment, for `trial` and `draft` none."""

    current: str = ""
    trial: str = ""
    draft: str = ""
    settled: bool = True
    """Whether the control plane knows that `current` is in use."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of one pair."""

    certificate: Path
    key: Path


def current_pair(directory: Path) -> Pair:
    """The pair in use of the device in `directory`."""
    return _pair(directory, _read(directory).current)


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate in a file.

    Raises:
        NotEnrolled: it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NotEnrolled(f"{path}: {error}") from error


def check_certificate(
    pem: str, ca: Path, device_id: str, public_key: ec.EllipticCurvePublicKey
) -> x509.Certificate:
    """Check that a certificate is this device's, for this key, of the authority it trusts.

    Raises:
        BadCertificate: it is not.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.read_bytes()))
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        raise BadCertificate("what came is no certificate of our authority") from error
    if [name.value for name in names] != [device_id]:
        raise BadCertificate("the certificate is for another device")
    if certificate.public_key() != public_key:
        raise BadCertificate("the certificate is for another key")
    return certificate


class Credentials:
    """See the module.  Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._attempts = 0
        self._chosen = _read(directory).current
        self._refused = 0

    @property
    def current(self) -> Pair:
        return current_pair(self._directory)

    @property
    def on_trial(self) -> bool:
        return bool(_read(self._directory).trial)

    @property
    def settled(self) -> bool:
        """Whether the control plane knows which pair is in use."""
        return _read(self._directory).settled

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    def choose(self) -> tuple[Path, Path]:
        """Certificate and key of the next attempt to connect."""
        with self._lock:
            pointer = _read(self._directory)
            on_trial = bool(pointer.trial) and self._attempts % 2 == 0
            self._attempts += 1
            self._chosen = pointer.trial if on_trial else pointer.current
            pair = _pair(self._directory, self._chosen)
            return pair.certificate, pair.key

    def connected(self) -> None:
        """The attempt with what was chosen last has succeeded."""
        try:
            self._note_success()
        except OSError as error:  # the line stands all the same; the next connection notes it
            log.error("identity.not_written cause=%s", error)

    def _note_success(self) -> None:
        with self._lock:
            self._attempts = 0
            pointer = _read(self._directory)
            if not pointer.trial:
                return
            if self._chosen == pointer.trial:
                self._refused = 0
                self._write(_Pointer(current=pointer.trial, settled=False))
                log.info("identity.renewed pair=%s", pointer.trial)
                return
            self._refused += 1
            if self._refused >= TRIALS:
                self._refused = 0
                log.error("identity.renewal_given_up pair=%s", pointer.trial)
                self._write(pointer.model_copy(update={"trial": ""}))
                self._sweep()

    # ── renewal ──────────────────────────────────────────────────────────────────────────────────

    def draft(self) -> Path:
        """Directory of the next pair; what an earlier attempt has begun goes on."""
        with self._lock:
            pointer = _read(self._directory)
            if not pointer.draft:
                pointer = pointer.model_copy(update={"draft": secrets.token_hex(4)})
                make_directories(self._directory / "pairs" / pointer.draft)
                self._write(pointer)
            return self._directory / "pairs" / pointer.draft

    def offer(self, certificate_pem: str) -> None:
        """The draft has its certificate: put it on trial."""
        self._finish(certificate_pem, trial=True)

    def adopt(self, certificate_pem: str) -> None:
        """The draft has its certificate by a new enrolment: it takes the present one's place."""
        self._finish(certificate_pem, trial=False)

    def settle(self) -> None:
        """The control plane knows the pair in use: what came before is removed."""
        with self._lock:
            self._write(_read(self._directory).model_copy(update={"settled": True}))
            self._sweep()

    def _finish(self, certificate_pem: str, *, trial: bool) -> None:
        with self._lock:
            pointer = _read(self._directory)
            path = self._directory / "pairs" / pointer.draft / "device.pem"
            write_whole(path, certificate_pem.encode())
            if trial:
                changed = {"trial": pointer.draft, "draft": ""}
            else:
                changed = {"current": pointer.draft, "draft": "", "trial": ""}
            self._attempts = self._refused = 0
            self._write(pointer.model_copy(update=changed))
            if not trial:
                self._sweep()

    def _write(self, pointer: _Pointer) -> None:
        write_whole(self._directory / POINTER, pointer.encode())

    def _sweep(self) -> None:
        """Remove every pair that has no place any more."""
        pointer = _read(self._directory)
        kept = {pointer.current, pointer.trial, pointer.draft}
        for each in (self._directory / "pairs").iterdir():
            if each.name not in kept:
                shutil.rmtree(each, ignore_errors=True)
        if pointer.current:
            first = _pair(self._directory, "")
            first.key.unlink(missing_ok=True)
            first.certificate.unlink(missing_ok=True)


def _pair(directory: Path, name: str) -> Pair:
    home = directory / "pairs" / name if name else directory
    return Pair(home / "device.pem", home / "device.key")


def _read(directory: Path) -> _Pointer:
    try:
        return _Pointer.decode((directory / POINTER).read_bytes())
    except FileNotFoundError:
        return _Pointer()
    except (OSError, WireError) as error:
        raise NotEnrolled(f"{directory / POINTER}: {error}") from error
