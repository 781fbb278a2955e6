"""A device's answers: only its own, only to this order, only once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, Device, LabOrder, Outbox
from cloud.lab.results import apply_answer
from edge_agent.device.identity import new_key
from edge_agent.wire.base import pack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.lab import MAX_MEASURE_BYTES, SIGNED_PREFIX, MeasureHeader, MeasureResult
from tests.update.test_lab_orders import certificate

NOW = 1_800_000_000.0
ORDER, OTHER = "1" * 32, "2" * 32


@dataclass
class Plane:
    sessions: Sessions
    key: ec.EllipticCurvePrivateKey

    def answer(self, frame: bytes, device: str = "cam-1") -> None:
        with self.sessions.begin() as session:
            apply_answer(session, device, frame, NOW)

    def state(self, order: str = ORDER) -> str:
        with self.sessions() as session:
            return session.get_one(LabOrder, order).state

    def refusals(self) -> list[str]:
        with self.sessions() as session:
            query = select(AuditEntry).where(AuditEntry.action == "lab.result_refused")
            return [entry.detail["reason"] for entry in session.scalars(query)]

    def frame(self, *, signed_by: ec.EllipticCurvePrivateKey | None = None, **fields) -> bytes:
        result = MeasureResult.model_validate(
            {
                "order": ORDER, "order_sha256": "a" * 64, "device": "cam-1", "state": "done",
                **fields,
            }
        )  # fmt: skip
        body = result.encode()
        signature = (signed_by or self.key).sign(SIGNED_PREFIX + body, ec.ECDSA(hashes.SHA256()))
        header = MeasureHeader(order=ORDER, state="done", signature=signature.hex())
        return pack_frame(header, body)


@pytest.fixture
def plane(sessions: Sessions) -> Plane:
    key = new_key()
    with sessions.begin() as session:
        for device in ("cam-1", "cam-2"):
            session.add(
                Device(
                    id=device, profile="p", labels={}, inventory={}, reported={}, desired={},
                    certificate_serial="1", certificate_expires_at=0.0, enrolled_at=0.0,
                    certificate_pem=certificate(key if device == "cam-1" else new_key()),
                )
            )  # fmt: skip
        for order, sha256 in ((ORDER, "a" * 64), (OTHER, "b" * 64)):
            session.add(
                LabOrder(
                    id=order, device="cam-1", profile="p", state="sent", order=b"",
                    order_sha256=sha256, blobs=[], result={}, created_by="ana", created_at=NOW,
                    expires_at=NOW + 60, updated_at=NOW,
                )
            )  # fmt: skip
    return Plane(sessions, key)


def test_a_result_ends_its_order_and_clears_the_topic(plane):
    plane.answer(plane.frame(memory_mib=12.5))
    assert plane.state() == "done"
    with plane.sessions() as session:
        row = session.get_one(LabOrder, ORDER)
        assert row.result["memory_mib"] == 12.5 and row.signature
        assert session.scalars(select(Outbox)).all() == []  # the other order is under way
    plane.answer(
        pack_frame(MeasureHeader(order=OTHER, state="done"), b"")  # unsigned: changes nothing
    )
    assert plane.state(OTHER) == "sent"


def test_a_forged_result_is_refused_and_audited(plane):
    plane.answer(plane.frame(signed_by=new_key()))
    assert plane.state() == "sent"
    assert plane.refusals() == ["the result is not signed by the device's registered key"]


def test_a_changed_byte_is_a_forged_result(plane):
    frame = plane.frame(memory_mib=12.5)
    plane.answer(frame.replace(b'"memory_mib":12.5', b'"memory_mib":11.5'))
    assert plane.state() == "sent" and len(plane.refusals()) == 1


def test_a_result_of_an_earlier_order_is_no_result_of_this_one(plane):
    plane.answer(plane.frame(order_sha256="b" * 64))
    plane.answer(plane.frame(order=OTHER))
    plane.answer(plane.frame(device="cam-2"))
    assert plane.state() == "sent"
    assert plane.refusals() == ["the result is of another order or device"] * 3


def test_another_device_cannot_answer(plane):
    plane.answer(plane.frame(), device="cam-2")
    assert plane.state() == "sent"
    assert plane.refusals() == ["there is no such order for this device"]


def test_the_first_result_counts(plane):
    plane.answer(plane.frame(memory_mib=12.5))
    plane.answer(plane.frame(memory_mib=1.0))
    with plane.sessions() as session:
        assert session.get_one(LabOrder, ORDER).result["memory_mib"] == 12.5


def test_a_result_after_the_end_changes_nothing(plane):
    with plane.sessions.begin() as session:
        session.get_one(LabOrder, ORDER).state = "expired"
    plane.answer(plane.frame())
    assert plane.state() == "expired"


def test_progress_only_goes_forward(plane):
    for state in ("measuring", "accepted"):
        plane.answer(pack_frame(MeasureHeader(order=ORDER, state=state), b""))
        assert plane.state() == "measuring"


def test_a_head_that_says_more_than_its_result_is_refused(plane):
    plane.answer(plane.frame(state="failed"))
    assert plane.refusals() == ["the result says something else than its head"]


def test_what_is_too_large_is_not_read(plane):
    with pytest.raises(WireError):
        plane.answer(b"\0" * (MAX_MEASURE_BYTES + 1))
