from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.datasets.testing import store_sample
from cloud.db.engine import Sessions
from cloud.db.tables import DriftReport
from cloud.drift import DriftSettings
from cloud.drift.testing import check, store_device, store_release
from edge_agent.drift import signals
from edge_agent.wire.manifest import TensorSpec
from edge_agent.wire.samples import Policy

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8))
Images = NDArray[np.float32]


def images(n: int, seed: int) -> Images:
    """Images with a gradient, so that turning one matters."""
    rng = np.random.default_rng(seed)
    return (rng.random((n, 8, 8)) + np.linspace(0, 2, 8)[:, None]).astype(np.float32)


def answer(batch: Images) -> NDArray[np.float64]:
    score = 1 / (1 + np.exp(-(batch[:, :, 0].mean(axis=1) - 1.5)))
    return np.stack([score, 1 - score], axis=1)


def release(session: Session, blobs: Blobs) -> None:
    known = images(400, 0)
    store_release(
        session, blobs, signals({"image": known}, answer(known)), [IMAGE], labels=["a", "b"]
    )


def upload(
    session: Session,
    blobs: Blobs,
    batch: Images,
    *,
    device: str = "dev-1",
    policy: Policy = "uniform",
    start: float = 1000.0,
) -> None:
    for row, scores in enumerate(answer(batch)):
        store_sample(
            session,
            blobs,
            f"{start:.0f}-{row}",
            {"image": batch[row : row + 1]},
            device=device,
            policy=policy,
            taken_at=start + row,
            scores=scores,
        )


def turned(batch: Images) -> Images:
    return np.ascontiguousarray(np.rot90(batch, axes=(1, 2)))


def test_inputs_like_the_reference_are_ok_and_turned_ones_drift(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        release(session, blobs)
        store_device(session, "dev-1")
        upload(session, blobs, images(80, 1))
        fleet, device = check(session, blobs, "digits", 1, 2000.0)
        assert (fleet.scope, fleet.verdict, fleet.n) == ("fleet", "ok", 80)
        assert (device.scope, device.verdict, device.n) == ("dev-1", "ok", 64)
        upload(session, blobs, turned(images(60, 2)), start=3000.0)
        fleet, device = check(session, blobs, "digits", 1, 4000.0)
        assert (fleet.verdict, device.verdict) == ("drift", "drift")
        assert fleet.statistic > fleet.threshold
        assert fleet.detail["p_value"] < 0.001


def test_only_the_uniform_stratum_of_this_version_is_read(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        release(session, blobs)
        store_device(session, "dev-1")
        upload(session, blobs, images(50, 1))
        upload(session, blobs, turned(images(50, 2)), policy="uncertain", start=2000.0)
        upload(session, blobs, turned(images(50, 3)), policy="event", start=3000.0)
        for row, image in enumerate(turned(images(50, 4))):
            store_sample(session, blobs, f"v2-{row}", {"image": image[None]}, version=2)
        (fleet,) = check(session, blobs, "digits", 1, 4000.0)
        assert (fleet.verdict, fleet.n) == ("ok", 50)


def test_few_samples_are_insufficient(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        release(session, blobs)
        store_device(session, "dev-1")
        (fleet,) = check(session, blobs, "digits", 1, 2000.0)
        assert (fleet.verdict, fleet.n) == ("insufficient", 0)
        upload(session, blobs, turned(images(20, 1)))
        (fleet,) = check(session, blobs, "digits", 1, 2000.0)
        assert (fleet.verdict, fleet.n) == ("insufficient", 20)


def test_the_same_samples_are_judged_once(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        release(session, blobs)
        store_device(session, "dev-1")
        upload(session, blobs, images(80, 1))
        first = check(session, blobs, "digits", 1, 2000.0)
        second = check(session, blobs, "digits", 1, 3000.0)
        assert [report.id for report in first] == [report.id for report in second]
        upload(session, blobs, images(1, 2), start=3000.0)
        check(session, blobs, "digits", 1, 4000.0)
        assert session.scalar(select(func.count()).select_from(DriftReport)) == 4


def test_old_samples_leave_the_window(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        release(session, blobs)
        store_device(session, "dev-1")
        upload(session, blobs, images(80, 1))
        (fleet,) = check(session, blobs, "digits", 1, 5000.0, DriftSettings(max_age_s=60.0))
        assert fleet.n == 0


def test_without_a_reference_nothing_is_said(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        assert check(session, blobs, "digits", 1, 2000.0) == []
        store_release(session, blobs, None, [IMAGE])
        assert check(session, blobs, "digits", 1, 2000.0) == []


def test_samples_that_lack_what_the_reference_has_are_counted_and_left_out(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        release(session, blobs)
        store_device(session, "dev-1")
        store_device(session, "dev-2", profile="elsewhere")
        upload(session, blobs, images(40, 1))
        upload(session, blobs, images(3, 2), device="dev-2", start=2000.0)
        store_sample(session, blobs, "no-scores", {"image": images(1, 3)}, taken_at=3000.0)
        store_sample(session, blobs, "dropped", {"other": images(1, 3)}, taken_at=3001.0)
        (fleet,) = check(session, blobs, "digits", 1, 4000.0)
        assert fleet.n == 40
        assert fleet.detail["unusable"] == {
            "no reference for its profile": 3,
            "undecodable or incomplete": 2,
        }
