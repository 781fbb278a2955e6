"""`/metrics` for Prometheus: aggregates by profile, version, wave and process; never a device.

A token of a viewer is needed, which Prometheus sends as `authorization: credentials`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from fastapi import APIRouter, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.api.auth import Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import Assignment, Device, Metric, Outbox, Rollout
from cloud.heartbeat import heartbeats
from fleet.rollouts.model import ACTIVE_STATES

router = APIRouter()

WINDOW_S: Final = 300.0
"""Serving figures are of the reports of so long."""

Sample = tuple[Mapping[str, object], float]


@router.get("/metrics", include_in_schema=False)
def metrics(context: ContextDep, _: Viewer) -> Response:
    now = context.clock()
    with context.readers() as session:
        lines = [
            *_fleet(session),
            *_rollouts(session),
            *_serving(session, now),
            *_outbox(session, now),
            *_processes(session, now),
        ]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _fleet(session: Session) -> list[str]:
    rows = session.execute(
        select(Device.profile, Device.online, func.count())
        .where(Device.revoked.is_(False))
        .group_by(Device.profile, Device.online)
    )
    samples = [
        ({"profile": profile, "online": str(bool(online)).lower()}, count)
        for profile, online, count in rows
    ]
    return _family("skerry_devices", "gauge", "Devices that are enrolled and not revoked.", samples)


def _rollouts(session: Session) -> list[str]:
    states = session.execute(select(Rollout.state, func.count()).group_by(Rollout.state))
    phases = session.execute(
        select(Rollout.model, Rollout.version, Assignment.wave, Assignment.phase, func.count())
        .join(Assignment, Assignment.rollout == Rollout.id)
        .where(Rollout.state.in_([state.value for state in ACTIVE_STATES]))
        .group_by(Rollout.model, Rollout.version, Assignment.wave, Assignment.phase)
    )
    return [
        *_family("skerry_rollouts", "gauge", "Rollouts.", [({"state": s}, n) for s, n in states]),
        *_family(
            "skerry_assignments",
            "gauge",
            "Devices of rollouts that go on.",
            [
                ({"model": model, "version": version, "wave": wave + 1, "phase": phase}, count)
                for model, version, wave, phase, count in phases
            ],
        ),
    ]


def _serving(session: Session, now: float) -> list[str]:
    requests = func.sum(Metric.report["requests"].as_integer())
    errors = func.sum(Metric.report["errors"].as_integer())
    rows = session.execute(
        select(Metric.model, Metric.version, Device.profile, requests, errors)
        .join(Device, Device.id == Metric.device)
        .where(Metric.at > now - WINDOW_S)
        .group_by(Metric.model, Metric.version, Device.profile)
    ).all()
    labelled = [
        ({"model": model, "version": version, "profile": profile}, asked, failed)
        for model, version, profile, asked, failed in rows
    ]
    return [
        *_family(
            "skerry_requests_5m",
            "gauge",
            "Requests that devices reported within five minutes.",
            [(labels, asked or 0) for labels, asked, _ in labelled],
        ),
        *_family(
            "skerry_request_errors_5m",
            "gauge",
            "Failed ones among them.",
            [(labels, failed or 0) for labels, _, failed in labelled],
        ),
    ]


def _outbox(session: Session, now: float) -> list[str]:
    count, oldest = session.execute(
        select(func.count(), func.min(Outbox.created_at)).where(Outbox.published_at.is_(None))
    ).one()
    age_s = max(0.0, now - oldest) if oldest is not None else 0.0
    return [
        *_family("skerry_outbox_waiting", "gauge", "Messages to devices that wait.", [({}, count)]),
        *_family("skerry_outbox_oldest_seconds", "gauge", "Age of the oldest.", [({}, age_s)]),
    ]


def _processes(session: Session, now: float) -> list[str]:
    told = heartbeats(session)
    return [
        *_family(
            "skerry_process_silent_seconds",
            "gauge",
            "Time since a process said that it lives.",
            [({"process": name}, max(0.0, now - at)) for name, (at, _) in told.items()],
        ),
        *_family(
            "skerry_process_total",
            "counter",
            "What a process counted since its start.",
            [
                ({"process": name, "what": what}, count)
                for name, (_, counts) in told.items()
                for what, count in sorted(counts.items())
            ],
        ),
    ]


def _family(name: str, kind: str, help_text: str, samples: Iterable[Sample]) -> list[str]:
    """Source: Prometheus text exposition format 0.0.4."""
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
        lines.append(
            f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"
        )
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
