"""The registry: versions of models, their promotions and lineage, and the audit.

Owns `model_versions`, `variants`, `promotions`, `gate_decisions` about models, and `audit`.
It decides which change of state is allowed; it judges no model (`cloud.gates`) and builds none
(`cloud.jobs`).  All functions work in the caller's transaction and never commit.
"""

from __future__ import annotations

from cloud.registry import audit
from cloud.registry.errors import (
    AuditBroken,
    GatesFailed,
    NotAllowed,
    RegistryError,
    UnknownVersion,
    VersionTaken,
)
from cloud.registry.lineage import Lineage, lineage
from cloud.registry.models import (
    State,
    VariantRecord,
    champion,
    failed_gates,
    record_gates,
    register_candidate,
    reserve_version,
    subject,
    transition,
)

__all__ = [
    "AuditBroken",
    "GatesFailed",
    "Lineage",
    "NotAllowed",
    "RegistryError",
    "State",
    "UnknownVersion",
    "VariantRecord",
    "VersionTaken",
    "audit",
    "champion",
    "failed_gates",
    "lineage",
    "record_gates",
    "register_candidate",
    "reserve_version",
    "subject",
    "transition",
]
