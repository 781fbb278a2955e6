"""One drift check of one version: read and judge, then record.

Judging reads many blobs and calibrates thresholds, which takes seconds; it needs no more than a
reader, so nobody waits for the database's write lock meanwhile.

A report is written for the fleet (scope "fleet") and for every device with enough samples (scope:
its id).  The same samples are judged once: a check with nothing new returns the earlier reports.
"""

from __future__ import annotations

import logging
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.db.tables import DriftReport
from cloud.drift.judge import WindowVerdict, judge_devices, judge_fleet
from cloud.drift.settings import DriftSettings
from cloud.drift.windows import Window, read_window, released_bundles

log = logging.getLogger("skerry.drift")

FLEET = "fleet"
"""Scope of the report over all devices."""

DEFAULT = DriftSettings()


def judge(
    session: Session,
    blobs: Blobs,
    model: str,
    version: int,
    now: float,
    settings: DriftSettings = DEFAULT,
) -> list[DriftReport]:
    """Check one version's uniform samples against the reference in its released bundle.

    Args:
        session: only read.
        now: seconds since the epoch.

    Returns:
        The fleet's report, then the devices', for `record`; empty when no release has a usable
        reference.
    """
    bundles = released_bundles(session, blobs, model, version)
    if not bundles:
        return []
    window = read_window(session, bundles, blobs, model, version, now, settings)
    earlier = _reports_of(session, model, version, window.newest_sample)
    if earlier:
        return earlier
    reports = [_fleet_report(window, settings), *_device_reports(window, settings)]
    for report in reports:
        report.model, report.version, report.at = model, version, now
        report.detail = {
            **report.detail,
            "newest_sample": window.newest_sample,
            "unusable": dict(window.unusable),
        }
    return reports


def record(session: Session, reports: list[DriftReport]) -> list[DriftReport]:
    """Store what `judge` found; what somebody stored meanwhile stands instead."""
    if not reports:
        return []
    fleet = reports[0]
    stored = _reports_of(session, fleet.model, fleet.version, fleet.detail["newest_sample"])
    if stored:
        return stored
    for report in reports:
        session.add(report)
        session.flush()
    log.info(
        "drift.checked model=%s version=%d verdict=%s statistic=%.1f threshold=%.1f n=%d",
        fleet.model, fleet.version, fleet.verdict, fleet.statistic, fleet.threshold, fleet.n,
    )  # fmt: skip
    return reports


def newest_fleet_report(session: Session, model: str, version: int) -> DriftReport | None:
    """The fleet's last report about a version."""
    return session.scalar(
        select(DriftReport)
        .where(
            DriftReport.model == model,
            DriftReport.version == version,
            DriftReport.scope == FLEET,
        )
        .order_by(DriftReport.id.desc())
        .limit(1)
    )


def _reports_of(session: Session, model: str, version: int, newest: str) -> list[DriftReport]:
    """Reports of the last check if it saw the same newest sample."""
    fleet = newest_fleet_report(session, model, version)
    if fleet is None or fleet.detail.get("newest_sample") != newest:
        return []
    return list(
        session.scalars(
            select(DriftReport)
            .where(
                DriftReport.model == model,
                DriftReport.version == version,
                DriftReport.id >= fleet.id,
            )
            .order_by(DriftReport.id)
        )
    )


def _fleet_report(window: Window, settings: DriftSettings) -> DriftReport:
    windows = [(window.bundles[profile].reference, rows) for profile, rows in window.newest.items()]
    n = sum(len(rows) for _, rows in windows)
    if n < settings.min_samples:
        return DriftReport(
            scope=FLEET,
            verdict="insufficient",
            statistic=0.0,
            threshold=0.0,
            n=n,
            detail={"needed": settings.min_samples},
        )
    return _report(FLEET, judge_fleet(windows, settings))


def _device_reports(window: Window, settings: DriftSettings) -> list[DriftReport]:
    windows = {
        device: (window.bundles[window.profile_of[device]].reference, rows)
        for device, rows in window.rows.items()
        if len(rows) >= settings.min_device_samples
    }
    return [
        _report(device, verdict)
        for device, verdict in sorted(judge_devices(windows, settings).items())
    ]


def _report(scope: str, judged: WindowVerdict) -> DriftReport:
    verdict: Literal["drift", "ok"] = "drift" if judged.statistic > judged.threshold else "ok"
    return DriftReport(
        scope=scope,
        verdict=verdict,
        statistic=judged.statistic,
        threshold=judged.threshold,
        n=judged.n,
        detail={"p_value": judged.p_value, "moved": dict(judged.moved)},
    )
