"""Measure orders: made, sent, taken back, run out.

Rules:
    * The image repository names the blobs before the order is in the outbox; the director signs the
      order's digest before it leaves (`cloud.orchestrator.outbox`).
    * A device has one open order.  What has run out is ended by whoever looks next: no process is
      needed to watch it.
    * When an order has ended, by whatever, an empty message takes the place of the retained one,
      and the director's next set for the device names none of its blobs.
"""

from __future__ import annotations

import hashlib
import io
import logging
import secrets
import tarfile
from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.db.tables import Device, LabBlob, LabOrder, Outbox
from cloud.errors import Conflict, NotFound, UserError
from cloud.lab.assigning import OPEN_STATES, named_candidates, open_orders, target_of
from cloud.lab.errors import CannotMeasure
from cloud.lab.selecting import why_not
from cloud.publish import CHUNK_BYTES, encode
from cloud.registry import audit
from cloud.signing import ImageRepository
from edge_agent.measure import MeasureSettings
from edge_agent.wire import topics
from edge_agent.wire.base import describe
from edge_agent.wire.errors import WireError
from edge_agent.wire.lab import MAX_ORDER_BYTES, LabInfo, LabKind, MeasureOrder
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from fleet.client.schemas import LabOrderIn

log = logging.getLogger("skerry.lab")

MAX_LAB_BLOB_BYTES: Final = 2 << 30
LAB_ZSTD_LEVEL: Final = 3
"""A candidate is fetched once or twice: packing it hard would take longer than sending it."""


def keep_blob(
    session: Session,
    sha256: str,
    kind: LabKind,
    profile: str,
    length: int,
    info: LabInfo,
    now: float,
) -> LabBlob:
    """Remember a stored blob as one that devices may be ordered to fetch; idempotent."""
    row = session.get(LabBlob, sha256)
    if row is None:
        row = LabBlob(
            sha256=sha256,
            kind=kind,
            profile=profile,
            length=length,
            info=info.model_dump(mode="json"),
            created_at=now,
        )
        session.add(row)
        session.flush()
    return row


def encode_blob(blobs: Blobs, data: bytes, kind: LabKind) -> LabInfo:
    """Store a blob in the forms that devices fetch."""
    forms = encode(blobs, data, level=LAB_ZSTD_LEVEL)
    return LabInfo(kind=kind, chunk_bytes=CHUNK_BYTES, encodings=forms)


def profile_of_bundle(data: bytes) -> str:
    """Which profile a packed bundle is for.

    Raises:
        UserError: it is no bundle.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            member = tar.next()
            if member is None or member.name != MANIFEST_NAME or member.size > MAX_MANIFEST_BYTES:
                raise UserError(f"the bundle does not begin with {MANIFEST_NAME}")
            stream = tar.extractfile(member)
            manifest = b"" if stream is None else stream.read()
        return Manifest.decode(manifest, limit=MAX_MANIFEST_BYTES).profile
    except (tarfile.TarError, WireError) as error:
        raise UserError(f"that is no bundle: {error}") from error


def create_order(
    session: Session,
    image_repository: ImageRepository,
    request: LabOrderIn,
    actor: str,
    *,
    now: float,
) -> LabOrder:
    """Order a measurement, once under the same id; the caller commits.

    Raises:
        NotFound: there is no such device or blob.
        CannotMeasure: the device cannot do it now.
        UserError: the settings make no sense.
        Conflict: targets keys must allow measuring on devices first.
        SigningError: the candidate cannot be named.
    """
    _check_settings(request.settings, request.server_settings)
    if request.id is not None and (known := session.get(LabOrder, request.id)) is not None:
        if known.device != request.device:
            raise Conflict(f"order {request.id} is for {known.device}")
        return known
    device = session.get(Device, request.device, with_for_update=True)
    if device is None:
        raise NotFound(f"no device {request.device!r}")
    if reason := why_not(device):
        raise CannotMeasure(reason)
    end_expired(session, now)
    if busy := open_orders(session, device.id):
        raise CannotMeasure(f"{device.id} is measuring already (order {busy[0].id})")
    candidate = _blob(session, request.candidate, "bundle", device.profile)
    samples = _blob(session, request.samples, "samples", "")
    baseline = None
    if request.compare_with is not None:
        baseline = _blob(session, request.compare_with, "bundle", device.profile)
    order = MeasureOrder(
        id=request.id or secrets.token_hex(16),
        device=device.id,
        profile=device.profile,
        issued_at=now,
        expires_at=now + request.timeout_s,
        candidate=target_of(candidate),
        samples=target_of(samples),
        compare_with=None if baseline is None else target_of(baseline),
        latency_ms=request.latency_ms,
        percentile=request.percentile,
        qps=request.qps,
        cost=request.cost,
        memory=request.memory,
        settings=request.settings,
        server_settings=request.server_settings,
    )
    data = order.encode()
    if len(data) > MAX_ORDER_BYTES:
        raise UserError(f"the order has {len(data)} bytes, {MAX_ORDER_BYTES} are allowed")
    row = LabOrder(
        id=order.id,
        device=device.id,
        profile=device.profile,
        state="sent",
        order=data,
        order_sha256=hashlib.sha256(data).hexdigest(),
        blobs=[each.sha256 for each in (candidate, samples, baseline) if each is not None],
        result={},
        created_by=actor,
        created_at=now,
        expires_at=order.expires_at,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    if not image_repository.open_lab():
        raise Conflict(
            "targets keys must allow measuring on devices first; "
            "go on with 'skerry keys request -o request.json'"
        )
    image_repository.name_candidates(named_candidates(session))
    _send(session, device.id, data, now)
    audit.append(
        session, actor, "lab.ordered", device.id,
        {"order": order.id, "candidate": candidate.sha256, "profile": device.profile}, at=now,
    )  # fmt: skip
    log.info("lab.ordered order=%s device=%s candidate=%s", order.id, device.id, candidate.sha256)
    return row


def find_order(session: Session, order_id: str) -> LabOrder:
    """
    Raises:
        NotFound: there is no such order.
    """
    row = session.get(LabOrder, order_id)
    if row is None:
        raise NotFound(f"no measure order {order_id!r}")
    return row


def cancel_order(session: Session, order_id: str, actor: str, *, now: float) -> LabOrder:
    """Take an order back; one that has ended stays as it is.  The caller commits."""
    row = find_order(session, order_id)
    if row.state in OPEN_STATES:
        end(session, row, "cancelled", f"taken back by {actor}", now)
        audit.append(session, actor, "lab.cancelled", row.device, {"order": row.id}, at=now)
    return row


def end_expired(session: Session, now: float) -> Sequence[LabOrder]:
    """End every order whose time is over; the caller commits."""
    query = select(LabOrder).where(LabOrder.state.in_(OPEN_STATES), LabOrder.expires_at <= now)
    rows = list(session.scalars(query))
    for row in rows:
        detail = f"no result in time; the device was last heard to be {row.state!r}"
        end(session, row, "expired", detail, now)
    return rows


def end(session: Session, row: LabOrder, state: str, detail: str, now: float) -> None:
    """Put an order into a final state, and an empty message into the place of the retained one."""
    row.state, row.detail, row.updated_at = state, detail[:500], now
    session.flush()
    if not open_orders(session, row.device):
        _send(session, row.device, b"", now)


def _send(session: Session, device: str, payload: bytes, now: float) -> None:
    session.add(
        Outbox(
            topic=topics.lab(device),
            payload=payload,
            retain=True,
            created_at=now,
            published_at=None,
        )
    )


def _blob(session: Session, sha256: str, kind: LabKind, profile: str) -> LabBlob:
    row = session.get(LabBlob, sha256)
    if row is None or row.kind != kind:
        raise NotFound(f"no {kind} {sha256[:16]} of the lab; upload it first")
    if row.profile != profile:
        raise CannotMeasure(f"the {kind} is for {row.profile}, the device is a {profile}")
    return row


def _check_settings(*given: dict[str, JsonValue]) -> None:
    for settings in given:
        try:
            MeasureSettings.model_validate(settings)
        except ValidationError as error:
            raise UserError(f"settings: {describe(error)}") from error
