"""Evidence of a rollout's gates, as it was signed."""

from __future__ import annotations

from typing import Literal

from fleet.client.schemas import ApiModel, Json


class DecisionOut(ApiModel):
    """One decision.  All fields but the last three are what was signed, in canonical JSON."""

    subject: str
    gate: str
    verdict: Literal["pass", "fail", "insufficient"]
    reason: str
    evidence: Json
    at: float
    previous: str
    """Digest of the decision before it; zeros for the first one."""
    sha256: str
    keyid: str
    """Empty: it was made before decisions were signed."""
    signature: str


class EvidenceOut(ApiModel):
    rollout: str
    decisions: list[DecisionOut]
    """Oldest first."""
    audited: list[str]
    """Digests that the audit names as the newest of their time, oldest first."""
