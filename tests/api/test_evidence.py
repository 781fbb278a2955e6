"""Signed evidence over the API and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from cloud.cli.evidence_commands import verify_rollout
from cloud.db.tables import GateDecision, Rollout
from cloud.orchestrator import evidence
from cloud.orchestrator.evidence import EvidenceBroken
from cloud.signing.evidence import EvidenceKey
from fleet.client.errors import ApiError
from fleet.rollouts.events import GateDecided


@pytest.fixture
def judged(plane, monkeypatch: pytest.MonkeyPatch) -> str:
    """A rollout with three decisions; commands speak to this control plane."""
    monkeypatch.setenv("SKERRY_URL", plane.url)
    monkeypatch.setenv("SKERRY_TOKEN", plane.admin_token)
    with plane.services.sessions.begin() as session:
        if session.get(Rollout, "judged") is None:
            session.add(
                Rollout(
                    id="judged", model="m", version=2, state="HALTED", plan={}, machine={},
                    created_by="ana", created_at=1.0, updated_at=1.0,
                )
            )  # fmt: skip
            session.flush()
            for wave in range(3):
                decided = GateDecided(
                    wave=wave,
                    gate="latency",
                    verdict="pass",
                    reason="p99 1.02 times that of the control group, ±5 %",
                    evidence={"ratio": 1.02, "devices": 40, "level": 2.5e-3, "limit": None},
                )
                key = plane.services.evidence_key
                evidence.record(session, key, "judged", decided, 1_800_000_000.125 + wave)
    return "judged"


def test_evidence_is_read_and_verified_with_the_keys_at_hand(
    plane, api, judged: str, tmp_path: Path
) -> None:
    found = api.rollout_evidence(judged)
    assert [each.subject[-1] for each in found.decisions] == ["0", "1", "2"]
    directory = plane.services.settings.directory
    verify_rollout(judged, key=None, directory=directory, json=False)
    (public,) = (directory / "evidence").glob("*.pub")
    verify_rollout(judged, key=[public], directory=tmp_path, json=True)
    stranger = EvidenceKey.create(tmp_path / "evidence", "passphrase")
    with pytest.raises(EvidenceBroken, match="not trusted"):
        verify_rollout(
            judged, key=[tmp_path / "evidence" / f"{stranger.keyid}.pub"], directory=tmp_path
        )
    with pytest.raises(ApiError, match="no rollout 'ghost'"):
        verify_rollout("ghost", key=[public], directory=tmp_path)


def test_decision_changed_in_the_database_does_not_verify(plane, judged: str) -> None:
    with plane.services.sessions.begin() as session:
        session.execute(
            update(GateDecision)
            .where(GateDecision.subject == f"rollout:{judged}:wave:1")
            .values(verdict="fail")
        )
    with pytest.raises(EvidenceBroken, match="decision 2 \\(latency\\): does not match"):
        verify_rollout(judged, key=None, directory=plane.services.settings.directory)
