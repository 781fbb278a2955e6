"""Applying one journalled message to the database, by its kind."""

from __future__ import annotations

import json
from typing import Final

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import labels
from cloud.blobs import Blobs
from cloud.commands.answers import apply_report
from cloud.db.tables import ModelVersion, Sample
from cloud.ingest.errors import BadMessage
from cloud.ingest.rows import Rows
from cloud.lab.results import apply_answer
from cloud.registry import audit
from edge_agent.wire.base import WireModel, unpack_frame
from edge_agent.wire.messages import Correction, DeviceEvent, MetricsReport, UpdateReport
from edge_agent.wire.samples import MAX_SAMPLE_BYTES, SampleHeader

MAX_REPORT_BYTES: Final = 8 * 1024
"""Bound of every kind but samples: they are kept as rows, not as blobs."""

MAX_EVENT_NAME: Final = 64
MAX_TEXT: Final = 200
MAX_FIGURE: Final = 1e12
"""Largest count, latency or memory of a report: sums of them stay exact in every database."""

FUTURE_S: Final = 3600.0
"""A time of the device that is further ahead of ours is replaced by ours."""


def apply(
    session: Session,
    blobs: Blobs,
    rows: Rows,
    device: str,
    kind: str,
    payload: bytes,
    now: float,
) -> None:
    """Apply one message of `device` in the session's transaction.

    Args:
        rows: collects what is written for many messages at once.
        kind: last level of the topic.
        payload: what is behind the uplink header.
        now: seconds since the epoch.

    Raises:
        BadMessage: unknown kind, or content that will never be right.
        WireError: does not parse, or is too large.
    """
    if kind == "sample":
        _sample(session, blobs, device, payload, now)
    elif kind == "report":
        _report(rows, device, UpdateReport.decode(payload, limit=MAX_REPORT_BYTES))
    elif kind == "metrics":
        _metrics(rows, device, MetricsReport.decode(payload, limit=MAX_REPORT_BYTES))
    elif kind == "correction":
        _correction(session, device, Correction.decode(payload, limit=MAX_REPORT_BYTES), now)
    elif kind == "measure":
        apply_answer(session, device, payload, now)
    elif kind == "command":
        apply_report(session, blobs, device, payload, now)
    elif kind == "event":
        _event(session, device, DeviceEvent.decode(payload, limit=MAX_REPORT_BYTES), now)
    else:
        raise BadMessage(f"unknown kind {kind[:40]!r}")


def _sample(session: Session, blobs: Blobs, device: str, payload: bytes, now: float) -> None:
    header, body = unpack_frame(payload, SampleHeader)
    if len(body) > MAX_SAMPLE_BYTES:
        raise BadMessage(f"a sample of {len(body)} bytes exceeds {MAX_SAMPLE_BYTES}")
    if session.get(Sample, header.sample_id) is not None:
        raise BadMessage("a sample with this id exists already")
    blob = blobs.put(bytes(body))
    session.add(
        Sample(
            id=header.sample_id,
            prediction_id=header.prediction_id,
            device=device,
            model=header.model,
            version=header.version,
            policy=header.policy,
            inclusion_prob=header.inclusion_prob,
            taken_at=_time(header.taken_at, now),
            received_at=now,
            predicted=header.predicted[:MAX_TEXT],
            header=_json(header),
            blob=blob,
        )
    )
    session.flush()


def _report(rows: Rows, device: str, report: UpdateReport) -> None:
    rows.report(device, report, _text(report))


def _metrics(rows: Rows, device: str, report: MetricsReport) -> None:
    counts = (report.requests, report.errors, report.rejects, report.corrections)
    sizes = (report.window_s, report.latency_p50_us, report.latency_p99_us, report.rss_mib)
    if not all(0 <= each <= MAX_FIGURE for each in (*counts, *sizes)):
        raise BadMessage("metrics with a figure that no device has")
    rows.metrics(device, report, _text(report))


def _correction(session: Session, device: str, correction: Correction, now: float) -> None:
    project = session.scalar(
        select(ModelVersion.project).where(
            ModelVersion.model == correction.model, ModelVersion.version == correction.version
        )
    )
    if project is None:
        raise BadMessage(f"a correction of {correction.model} {correction.version}, unknown here")
    if not 0 < len(correction.prediction_id) <= MAX_TEXT or len(correction.label) > MAX_TEXT:
        raise BadMessage("a correction with a prediction id or label of a wrong length")
    labels.add(
        session,
        project,
        correction.prediction_id,
        correction.label,
        "correction",
        device=device,
        model_version=correction.version,
        at=_time(correction.at, now),
    )


def _event(session: Session, device: str, event: DeviceEvent, now: float) -> None:
    if not 0 < len(event.name) <= MAX_EVENT_NAME:
        raise BadMessage("an event with a name of a wrong length")
    try:
        audit.append(
            session, f"device:{device}", f"device.{event.name}", device, event.fields, at=now
        )
    except ValueError as error:
        raise BadMessage("an event whose fields have no canonical form") from error


def _time(at: float, now: float) -> float:
    """A device's time if it can be true, else ours; also for a time that is not a number."""
    return at if 0 < at < now + FUTURE_S else now


def _text(message: WireModel) -> str:
    """The message as JSON that its own type reads again.

    Raises:
        BadMessage: it does not: JSON has no infinity, and its readers would stumble later.
    """
    text = message.model_dump_json()
    try:
        type(message).model_validate_json(text)
    except ValidationError as error:
        raise BadMessage(f"{type(message).__name__} holds a number that is none") from error
    return text


def _json(message: WireModel) -> dict[str, object]:
    """`_text`, taken apart."""
    content: dict[str, object] = json.loads(_text(message))
    return content
