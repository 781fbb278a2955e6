"""What Prometheus is told: aggregates, and nothing of a single device."""

from __future__ import annotations

import httpx
import pytest

from cloud.db.tables import Device, Metric, Outbox
from cloud.heartbeat import FORGOTTEN_S, Heartbeat, forget_gone, heartbeats
from tests.api.conftest import Plane

SECRET_NAME = "camera-at-the-gate"


@pytest.fixture
def text(plane: Plane) -> str:
    services = plane.services
    with services.sessions.begin() as session:
        if session.get(Device, SECRET_NAME) is None:
            session.add(
                Device(
                    id=SECRET_NAME, profile='pi "5"', labels={}, inventory={},
                    certificate_serial="1", certificate_expires_at=0.0, enrolled_at=0.0,
                    reported={}, desired={}, online=True,
                )
            )  # fmt: skip
            session.flush()
            report = {"requests": 10, "errors": 2}
            session.add(
                Metric(device=SECRET_NAME, model="digits", version=2, at=9e9, report=report)
            )
            session.add(
                Outbox(
                    topic=f"skerry/v1/d/{SECRET_NAME}/ack", payload=b"", retain=False,
                    created_at=1.0, published_at=None,
                )
            )  # fmt: skip
    Heartbeat(services.sessions, "ingest").beat({"applied": 7})
    answer = httpx.get(
        f"{plane.url}/metrics", headers={"Authorization": f"Bearer {plane.admin_token}"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def test_devices_are_counted_by_profile(text: str) -> None:
    assert 'skerry_devices{profile="pi \\"5\\"",online="true"} 1' in text


def test_requests_are_summed_by_version_and_profile(text: str) -> None:
    labels = 'model="digits",version="2",profile="pi \\"5\\""'
    assert f"skerry_requests_5m{{{labels}}} 10" in text
    assert f"skerry_request_errors_5m{{{labels}}} 2" in text


def test_processes_show_what_they_counted(text: str) -> None:
    assert 'skerry_process_total{process="ingest",what="applied"} 7' in text
    assert 'skerry_process_silent_seconds{process="ingest"} ' in text
    assert "skerry_outbox_waiting 1" in text


def test_no_device_is_named(text: str) -> None:
    assert SECRET_NAME not in text


def test_without_a_token_nothing_is_told(plane: Plane) -> None:
    assert httpx.get(f"{plane.url}/metrics").status_code == 401


def test_a_process_that_is_gone_is_forgotten(sessions) -> None:
    Heartbeat(sessions, "old", clock=lambda: 1.0).beat({})
    Heartbeat(sessions, "new", clock=lambda: FORGOTTEN_S).beat({"turns": 1})
    with sessions.begin() as session:
        forget_gone(session, FORGOTTEN_S + 2)
    with sessions() as session:
        assert heartbeats(session) == {"new": (FORGOTTEN_S, {"turns": 1})}
