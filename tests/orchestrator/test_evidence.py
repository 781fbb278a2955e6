"""Gate decisions are signed and chained; whoever changes one is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.cli import evidence_commands
from cloud.db.tables import GateDecision
from cloud.errors import OperatorError
from cloud.orchestrator.evidence import EvidenceBroken, evidence_of, verify
from cloud.signing import KeysMissing, WrongPassphrase
from cloud.signing.evidence import EvidenceKey, evidence_keys, signed_by
from fleet.client.evidence_schemas import EvidenceOut
from fleet.client.schemas import WaveIn


@pytest.fixture
def trusted(evidence_key):
    return {evidence_key.keyid: evidence_key._signer.public_key}


@pytest.fixture
def found(plane) -> EvidenceOut:
    """A rollout of two waves that completed."""
    plane.enrol("d0", "d1")
    plane.release(1)
    rollout = plane.start(1, [WaveIn(count=1, soak_s=5), WaveIn(percent=100, soak_s=5)])
    for _ in range(2):
        plane.turn()
        for device in ("d0", "d1"):
            if plane.publisher.twin(device) is not None:
                plane.report(device, "healthy")
        plane.turn()
        plane.turn(6)
    assert plane.state(rollout) == "COMPLETED"
    with plane.sessions() as session:
        return evidence_of(session, rollout)


def test_decisions_of_all_waves_are_signed_in_their_order(found, trusted) -> None:
    assert verify(found, trusted) == len(found.decisions) == 14
    assert found.audited[-1] == found.decisions[-1].sha256


def test_changed_decision_is_found(found, trusted) -> None:
    changes = {
        "verdict": "fail",
        "reason": "all is well",
        "evidence": {"failures": 0},
        "at": 1.0,
        "gate": "other",
        "subject": "rollout:another:wave:0",
    }
    for field, value in changes.items():
        decisions = list(found.decisions)
        decisions[3] = decisions[3].model_copy(update={field: value})
        with pytest.raises(EvidenceBroken, match="decision 4"):
            verify(found.model_copy(update={"decisions": decisions}), trusted)


def test_removed_or_swapped_decision_is_found(found, trusted) -> None:
    first, second, *rest = found.decisions
    for decisions in ([first, *rest], [second, first, *rest], rest):
        with pytest.raises(EvidenceBroken, match="does not follow"):
            verify(found.model_copy(update={"decisions": decisions}), trusted)


def test_end_that_was_cut_off_is_missed_by_the_audit(found, trusted) -> None:
    shorter = found.model_copy(update={"decisions": found.decisions[:-1]})
    with pytest.raises(EvidenceBroken, match="the audit names decision"):
        verify(shorter, trusted)


def test_decision_rewritten_with_another_key_is_found(
    plane, found, trusted, tmp_path: Path
) -> None:
    stranger = EvidenceKey.create(tmp_path / "stranger", "passphrase")
    with pytest.raises(EvidenceBroken, match="which is not trusted"):
        verify(found, {stranger.keyid: stranger._signer.public_key})
    last = found.decisions[-1]
    forged = last.model_copy(update={"signature": stranger.sign(b"anything")})
    with pytest.raises(EvidenceBroken, match="the signature is wrong"):
        verify(found.model_copy(update={"decisions": [*found.decisions[:-1], forged]}), trusted)


def test_decisions_from_before_signing_are_passed_over_but_not_behind_signed_ones(
    plane, found, trusted
) -> None:
    old = found.decisions[0].model_copy(
        update={"previous": "", "sha256": "", "keyid": "", "signature": ""}
    )
    assert verify(found.model_copy(update={"decisions": [old, *found.decisions]}), trusted) == 14
    with pytest.raises(EvidenceBroken):
        verify(found.model_copy(update={"decisions": [*found.decisions, old]}), trusted)


def test_decisions_of_models_are_left_unsigned(plane) -> None:
    with plane.sessions.begin() as session:
        session.add(
            GateDecision(
                subject="model:digits:1", gate="a", verdict="pass", reason="", evidence={}, at=1
            )
        )  # fmt: skip
    with plane.sessions() as session:
        assert session.query(GateDecision).one().signature == ""


def test_key_is_made_once_and_old_public_keys_stay(tmp_path: Path) -> None:
    directory = tmp_path / "evidence"
    with pytest.raises(KeysMissing):
        EvidenceKey.open(directory, "passphrase")
    first = EvidenceKey.create(directory, "passphrase")
    assert EvidenceKey.create(directory, "passphrase").keyid == first.keyid
    assert (directory / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(WrongPassphrase):
        EvidenceKey.open(directory, "another")
    (directory / "key.pem").rename(tmp_path / "old.pem")
    second = EvidenceKey.create(directory, "passphrase")
    keys = evidence_keys(directory)
    assert set(keys) == {first.keyid, second.keyid}
    assert signed_by(keys[first.keyid], b"content", first.sign(b"content"))
    assert not signed_by(keys[second.keyid], b"content", first.sign(b"content"))
    assert not signed_by(keys[first.keyid], b"other", first.sign(b"content"))


def test_command_without_a_key_says_where_one_is(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="name one with --key"):
        evidence_commands.verify_rollout("x", key=None, directory=tmp_path)
