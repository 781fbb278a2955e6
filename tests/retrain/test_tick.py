from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import labels, registry
from cloud.blobs import Blobs
from cloud.datasets.testing import store_sample
from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, DatasetVersion, Job, Project
from cloud.drift.testing import store_device
from cloud.registry import VariantRecord
from cloud.retrain import RetrainPolicy, gather, last_decision, tick

IMAGE = {"image": np.zeros((1, 8, 8), np.float32)}
POLICY = RetrainPolicy()


def start(session: Session, *, automatic: bool = True) -> None:
    """Project and champion; its variants were judged at .98 here and .90 on the small profile."""
    session.add(
        Project(
            name="digits",
            code_sha="c",
            spec={
                "retrain": {
                    "min_labels": 20,
                    "max_accuracy_drop_points": 5.0,
                    "cooldown_s": 60.0,
                    "automatic": automatic,
                }
            },
            applied_at=0.0,
        )
    )
    session.add(
        DatasetVersion(
            id="base",
            project="digits",
            stage="labelled",
            rows=1,
            manifest={},
            parent=None,
            created_at=100.0,
        )
    )
    register(session, 1)
    for state in ("approved", "published", "champion"):
        registry.transition(session, "digits", 1, state, "admin")  # type: ignore[arg-type]
    store_device(session, "dev-1", "here")
    store_device(session, "dev-2", "small")


def register(session: Session, version: int) -> None:
    registry.register_candidate(
        session,
        model="digits",
        version=version,
        project="digits",
        dataset="base",
        code_sha="c",
        job=f"job-{version}",
        metrics={},
        environment={},
        variants=[
            VariantRecord(
                profile, "small/fp32", "onnxruntime", "PASS", selected=True,
                accuracy={"accuracy": accuracy},
            )
            for profile, accuracy in (("here", 0.98), ("small", 0.90))
        ],
    )  # fmt: skip


def traffic(
    session: Session, blobs: Blobs, right: int, wrong: int, *, confirm: bool = True
) -> None:
    for row in range(right + wrong):
        prediction = f"p{row}"
        store_sample(session, blobs, prediction, IMAGE, predicted="1", taken_at=1000.0 + row)
        if row < right and confirm:
            labels.add(session, "digits", prediction, "1", "correction", at=2000.0)
        if row >= right:
            labels.add(session, "digits", prediction, "7", "correction", at=2000.0)


def facts_of(session: Session) -> object:
    champion = registry.champion(session, "digits")
    assert champion is not None
    return gather(session, champion, POLICY)


def test_corrections_confirm_harm_and_a_job_is_due(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start(session)
        traffic(session, blobs, right=30, wrong=60)
        (turn,) = tick(session, 5000.0)
        assert turn.decision.action == "retrain"
        assert (turn.model, turn.project, turn.start_job) == ("digits", "digits", True)


def test_a_policy_that_is_not_automatic_starts_nothing(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start(session, automatic=False)
        traffic(session, blobs, right=30, wrong=60)
        (turn,) = tick(session, 5000.0)
        assert (turn.decision.action, turn.start_job) == ("retrain", False)


def test_users_who_only_report_errors_do_not_make_a_good_model_look_bad(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start(session)
        traffic(session, blobs, right=97, wrong=3, confirm=False)
        (turn,) = tick(session, 5000.0)
        assert turn.decision.action == "none"


def test_only_uniform_samples_of_the_champion_tell_its_accuracy(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start(session)
        traffic(session, blobs, right=40, wrong=0)
        for row in range(60):
            version = 1 + row % 2
            store_sample(
                session, blobs, f"e{row}", IMAGE, predicted="1", version=version,
                policy="uncertain" if version == 1 else "uniform", taken_at=3000.0,
            )  # fmt: skip
            labels.add(session, "digits", f"e{row}", "7", "correction", at=3000.0)
        (turn,) = tick(session, 5000.0)
        assert turn.decision.action == "none"


def test_the_baseline_is_that_of_the_profiles_which_sent_the_samples(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start(session)
        champion = registry.champion(session, "digits")
        assert champion is not None
        assert gather(session, champion, POLICY).baseline_accuracy == pytest.approx(0.94)
        for row in range(3):
            store_sample(session, blobs, f"p{row}", IMAGE, device="dev-2")
        assert gather(session, champion, POLICY).baseline_accuracy == pytest.approx(0.90)


def test_audited_accuracy_weighs_samples_by_their_inclusion(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start(session)
        champion = registry.champion(session, "digits")
        assert champion is not None
        for row, (chance, truth) in enumerate([(0.1, "1"), (1.0, "7")]):
            store_sample(session, blobs, f"p{row}", IMAGE, predicted="1", inclusion_prob=chance)
            labels.add(session, "digits", f"p{row}", truth, "human")
        audited = gather(session, champion, POLICY).audited
        assert audited.right / audited.n == pytest.approx(10 / 11)
        assert audited.n == pytest.approx(11**2 / 101)


def test_labels_that_the_champion_was_trained_on_are_not_new(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start(session)
        champion = registry.champion(session, "digits")
        assert champion is not None
        for row, at in enumerate([50.0, 150.0, 160.0]):
            store_sample(session, blobs, f"p{row}", IMAGE)
            labels.add(session, "digits", f"p{row}", "1", "human", at=at)
        labels.add(session, "digits", "never-sampled", "1", "human", at=170.0)
        assert gather(session, champion, POLICY).new_labels == 2


def test_a_job_or_a_waiting_candidate_holds_back(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start(session)
        traffic(session, blobs, right=30, wrong=60)
        job = Job(
            id="r", kind="retrain", project="digits", state="running", params={}, result={},
            created_at=5000.0, updated_at=5000.0,
        )  # fmt: skip
        session.add(job)
        session.flush()
        assert "under way" in tick(session, 5000.0)[0].decision.reason
        job.state = "succeeded"
        session.flush()
        assert "cooling down" in tick(session, 5010.0)[0].decision.reason
        assert tick(session, 5070.0)[0].decision.action == "retrain"
        register(session, 2)
        assert "version 2" in tick(session, 5070.0)[0].decision.reason
        registry.transition(session, "digits", 2, "rejected", "admin")
        assert tick(session, 5070.0)[0].decision.action == "retrain"


def test_a_change_of_action_is_audited_once(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start(session)
        traffic(session, blobs, right=30, wrong=60)
        for now in (5000.0, 5060.0, 5120.0):
            tick(session, now)
        actions = session.scalars(select(AuditEntry.action)).all()
        assert list(actions).count("retrain.decided") == 1
        last = last_decision(session, "digits")
        assert last is not None and last.action == "retrain"


def test_no_champion_no_turn(sessions: Sessions) -> None:
    with sessions.begin() as session:
        assert tick(session, 1.0) == []
