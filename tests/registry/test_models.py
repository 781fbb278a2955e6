from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import registry
from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, DatasetVersion, ModelVersion, Promotion
from cloud.gates import GateResult
from cloud.registry import VariantRecord

PASSED = GateResult("recall_floors", "pass", "all above", {"n": 500})
FAILED = GateResult("non_inferiority", "fail", "three points worse", {"n": 500})
UNSURE = GateResult("non_inferiority", "insufficient", "12 rows", {"n": 12})


def register(
    session: Session, version: int = 1, *, job: str = "", gates: tuple[GateResult, ...] = (PASSED,)
) -> ModelVersion:
    return registry.register_candidate(
        session,
        model="digits",
        version=version,
        project="digits",
        dataset=f"dataset-{version}",
        code_sha="c" * 64,
        job=job or f"job-{version}",
        metrics={"accuracy": 0.97},
        environment={"python": "3.11"},
        variants=[
            VariantRecord("this-machine", "small/fp32", "onnxruntime", "PASS", selected=True)
        ],
        gates=gates,
        parent_version=version - 1 or None,
        at=1000.0 + version,
    )


def promote(session: Session, version: int, *states: registry.State) -> None:
    for state in states:
        registry.transition(session, "digits", version, state, "admin", "tested")


def test_a_candidate_becomes_champion_with_its_history(sessions: Sessions) -> None:
    with sessions.begin() as session:
        register(session)
        promote(session, 1, "approved", "published", "champion")
        champion = registry.champion(session, "digits")
        assert champion is not None and champion.version == 1
        history = session.execute(
            select(Promotion.from_state, Promotion.to_state).order_by(Promotion.id)
        ).all()
        assert [tuple(row) for row in history] == [
            ("", "candidate"),
            ("candidate", "approved"),
            ("approved", "published"),
            ("published", "champion"),
        ]
        actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
        assert list(actions) == [
            "model.candidate", "model.approved", "model.published", "model.champion",
        ]  # fmt: skip
        registry.audit.verify(session)


def test_a_new_champion_retires_the_old_and_a_rollback_brings_it_back(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for version in (1, 2):
            register(session, version)
            promote(session, version, "approved", "published", "champion")
        rows = session.scalars(select(ModelVersion))
        states = {row.version: row.state for row in rows}
        assert states == {1: "retired", 2: "champion"}
        promote(session, 1, "champion")
        champion = registry.champion(session, "digits")
        assert champion is not None and champion.version == 1


@pytest.mark.parametrize("to_state", ["published", "champion", "retired"])
def test_a_candidate_cannot_skip_its_approval(sessions: Sessions, to_state: registry.State) -> None:
    with sessions.begin() as session:
        register(session)
        with pytest.raises(registry.NotAllowed, match="allowed: approved, rejected"):
            registry.transition(session, "digits", 1, to_state, "admin")


def test_a_rejected_version_stays_rejected(sessions: Sessions) -> None:
    with sessions.begin() as session:
        register(session)
        promote(session, 1, "rejected")
        with pytest.raises(registry.NotAllowed, match="allowed: nothing"):
            registry.transition(session, "digits", 1, "approved", "admin")


def test_a_failed_gate_blocks_approval_unless_overridden_on_the_record(sessions: Sessions) -> None:
    with sessions.begin() as session:
        register(session, gates=(PASSED, FAILED))
        with pytest.raises(registry.GatesFailed, match="non_inferiority"):
            registry.transition(session, "digits", 1, "approved", "admin")
        registry.transition(session, "digits", 1, "approved", "admin", "known", override=True)
        entry = session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc())).first()
        assert entry is not None
        assert entry.detail["overridden_gates"] == ["non_inferiority"]


def test_insufficient_data_is_for_a_person_to_judge(sessions: Sessions) -> None:
    with sessions.begin() as session:
        register(session, gates=(PASSED, UNSURE))
        assert registry.transition(session, "digits", 1, "approved", "admin").state == "approved"


def test_only_the_newest_decision_of_a_gate_counts(sessions: Sessions) -> None:
    with sessions.begin() as session:
        register(session, gates=(FAILED,))
        again = GateResult("non_inferiority", "pass", "with more labels")
        registry.record_gates(session, registry.subject("digits", 1), [again])
        assert registry.failed_gates(session, "digits", 1) == ()


def test_a_restarted_job_gets_the_same_number_and_registers_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        first = registry.reserve_version(session, "digits", "job-a")
        assert registry.reserve_version(session, "digits", "job-b") == first + 1
        assert registry.reserve_version(session, "digits", "job-a") == first
        register(session, first, job="job-a")
        register(session, first, job="job-a")
        assert len(session.scalars(select(Promotion)).all()) == 1
        with pytest.raises(registry.VersionTaken):
            register(session, first, job="job-b")


def test_lineage_leads_back_to_datasets_and_ancestors(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for version in (1, 2):
            parent = "dataset-1" if version == 2 else None
            session.add(
                DatasetVersion(
                    id=f"dataset-{version}",
                    project="digits",
                    stage="labelled",
                    rows=10,
                    manifest={},
                    parent=parent,
                    created_at=1.0,
                )
            )
            register(session, version)
        found = registry.lineage(session, "digits", 2)
        assert [dataset.id for dataset in found.datasets] == ["dataset-2", "dataset-1"]
        assert found.ancestors == (1,)
        assert [variant.name for variant in found.variants] == ["small/fp32"]
        assert [gate.gate for gate in found.gates] == ["recall_floors"]
        with pytest.raises(registry.UnknownVersion):
            registry.lineage(session, "digits", 3)
