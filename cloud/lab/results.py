"""A device's answers to measure orders: verified, then applied once.

A result counts when the key of the certificate that this very device was registered with signed its
bytes, and when it names this device, this order and the digest of the order's bytes.  Whatever else
comes is dropped, and said in the audit.
"""

from __future__ import annotations

import logging

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session

from cloud.db.tables import Device, LabOrder
from cloud.lab.assigning import OPEN_STATES
from cloud.lab.orders import end
from cloud.registry import audit
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.lab import (
    FINAL_STATES,
    MAX_MEASURE_BYTES,
    SIGNED_PREFIX,
    MeasureHeader,
    MeasureResult,
)

log = logging.getLogger("skerry.lab")

_PROGRESS = {"accepted": 1, "downloading": 2, "measuring": 3}


class BadResult(Exception):
    """A result that must not be believed; one line."""


def apply_answer(session: Session, device: str, payload: bytes, now: float) -> None:
    """Apply one answer of `device` in the session's transaction.

    Raises:
        WireError: it does not parse, or is too large.
    """
    header, body = unpack_frame(payload, MeasureHeader, limit=MAX_MEASURE_BYTES)
    row = session.get(LabOrder, header.order)
    if row is None or row.device != device:
        _refuse(session, device, header.order, "there is no such order for this device", now)
        return
    if header.state not in FINAL_STATES:
        if row.state in OPEN_STATES and _PROGRESS[header.state] > _PROGRESS.get(row.state, 0):
            row.state, row.updated_at = header.state, now
        return
    data = bytes(body)
    try:
        result = verify(session.get(Device, device), row, header, data)
    except BadResult as error:
        _refuse(session, device, row.id, str(error), now)
        return
    if row.state not in OPEN_STATES:
        # the first one counts: of a device that sent it twice, or that was too late
        log.info("lab.result_ignored order=%s state=%s", row.id, row.state)
        return
    row.result = result.model_dump(mode="json")
    row.signature = header.signature
    end(session, row, result.state, result.detail or result.reason, now)
    log.info("lab.result order=%s device=%s state=%s", row.id, device, result.state)


def verify(
    device: Device | None, row: LabOrder, header: MeasureHeader, data: bytes
) -> MeasureResult:
    """The result in `data`, once it is surely the device's own, to this order.

    Raises:
        BadResult: it is not.
        WireError: it does not parse.
    """
    if device is None or not device.certificate_pem:
        raise BadResult("the device has no registered certificate")
    key = x509.load_pem_x509_certificate(device.certificate_pem.encode()).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadResult("the device's registered key cannot sign results")
    try:
        key.verify(bytes.fromhex(header.signature), SIGNED_PREFIX + data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise BadResult("the result is not signed by the device's registered key") from error
    result = MeasureResult.decode(data, limit=MAX_MEASURE_BYTES)
    if (result.device, result.order, result.order_sha256) != (
        device.id,
        row.id,
        row.order_sha256,
    ):
        raise BadResult("the result is of another order or device")
    if result.state != header.state:
        raise BadResult("the result says something else than its head")
    return result


def _refuse(session: Session, device: str, order: str, reason: str, now: float) -> None:
    log.warning("lab.result_refused device=%s order=%s cause=%s", device, order, reason)
    audit.append(
        session, f"device:{device}", "lab.result_refused", device,
        {"order": order, "reason": reason}, at=now,
    )  # fmt: skip
