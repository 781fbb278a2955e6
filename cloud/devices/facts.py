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
    inventory: dict[str, Any] = row.inventory or {}
    reported: dict[str, Any] = row.reported or {}
    return DeviceFacts(
        id=row.id,
        profile=row.profile,
        online=row.online,
        revoked=row.revoked,
        last_seen_s=now - row.last_seen if row.last_seen > 0 else None,
        enrolled_s=now - row.enrolled_at,
        agent_version=reported.get("agent_version") or "",
        machine=inventory.get("machine") or "",
        board=inventory.get("board") or "",
        cores=inventory.get("cores"),
        memory_mib=inventory.get("memory_mib"),
        isa=frozenset(inventory.get("cpu_flags") or ()),
        runtimes=inventory.get("runtimes") or {},
        labels=row.labels,
        models={
            name: ModelFacts(state["version"], state.get("variant", ""), state.get("phase", ""))
            for name, state in (reported.get("models") or {}).items()
        },
        groups=groups,
    )
