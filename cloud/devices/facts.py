"""A device's row as a query sees it.  `cloud.devices.matching` reads the same places in SQL."""

from __future__ import annotations

from typing import Any

from cloud.db.tables import Device
from fleet.devices.facts import DeviceFacts, ModelFacts


def facts_of(row: Device, now: float, groups: frozenset[str] = frozenset()) -> DeviceFacts:
    """
    Args:
        now: seconds since the epoch.
        groups: names of the groups that the device is in; its row does not say.
    """
    known: dict[str, Any] = row.facts
    return DeviceFacts(
        id=row.id,
        profile=row.profile,
        online=row.online,
        revoked=row.revoked,
        last_seen_s=now - row.last_seen if row.last_seen > 0 else None,
        enrolled_s=now - row.enrolled_at,
        agent_version=known.get("agent_version") or "",
        machine=known.get("machine") or "",
        board=known.get("board") or "",
        cores=known.get("cores"),
        memory_mib=known.get("memory_mib"),
        isa=frozenset(row.inventory.get("cpu_flags") or ()),
        runtimes=known.get("runtimes") or {},
        labels=row.labels,
        models={
            name: ModelFacts(state["version"], state["variant"] or "", state["phase"] or "")
            for name, state in known.get("models", {}).items()
        },
        groups=groups,
    )
