"""Retraining: when the field says that a new version is due.

Decides from labels, drift and the project's policy; starts nothing by itself (`cloud.jobs` does).
"""

from __future__ import annotations

from cloud.retrain.facts import gather
from cloud.retrain.policy import Action, Decision, RetrainFacts, RetrainPolicy, Share, decide
from cloud.retrain.tick import Turn, last_decision, policy_of, tick, turn

__all__ = [
    "Action",
    "Decision",
    "RetrainFacts",
    "RetrainPolicy",
    "Share",
    "Turn",
    "decide",
    "gather",
    "last_decision",
    "policy_of",
    "tick",
    "turn",
]
