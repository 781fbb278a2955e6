"""What queries ask of a device's inventory and reported twin, cut out of them.

Both documents are kilobytes long.  Their few queried parts lie in the column `facts` of the device,
which is short enough for an index that holds all that is filtered by, so ten thousand devices are
filtered in milliseconds.  `cloud.db.tables.Device` keeps the column up to date with every write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet.devices.facts import version_text


def compact(
    inventory: Mapping[str, Any] | None, reported: Mapping[str, Any] | None
) -> dict[str, Any]:
    """
    Args:
        inventory: an `edge_agent.wire.messages.Inventory` as JSON, or nothing.
        reported: a `DeviceState` as JSON, or nothing.
    """
    found: dict[str, Any] = {
        "agent_version": (reported or {}).get("agent_version"),
        "models": {
            name: {key: state.get(key) for key in ("version", "variant", "phase")}
            for name, state in ((reported or {}).get("models") or {}).items()
        },
    }
    for name in ("machine", "board", "cores", "memory_mib", "runtimes"):
        found[name] = (inventory or {}).get(name)
    # databases do not order versions: beside each stands a text that is ordered like it
    found["agent_order"] = version_text(found["agent_version"])
    found["runtime_order"] = {
        name: version_text(version) for name, version in (found["runtimes"] or {}).items()
    }
    return {name: _clean(value) for name, value in found.items() if value}


def _clean(value: Any) -> Any:
    """Without the one character that PostgreSQL can keep in JSON, but never take out of it."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_clean(name): _clean(each) for name, each in value.items()}
    return value
