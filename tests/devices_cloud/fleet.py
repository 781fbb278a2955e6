"""Devices for tests of the registry."""

from __future__ import annotations

from typing import Any

from cloud.db.tables import Device

NOW = 1_800_000_000.0


def device(device_id: str, **fields: Any) -> Device:
    """A device's row; what is not given is as of one that never spoke."""
    known: dict[str, Any] = {
        "profile": "raspberry-pi-5",
        "labels": {},
        "inventory": {},
        "certificate_serial": "1",
        "certificate_expires_at": NOW + 90 * 86_400,
        "certificate_pem": "",
        "enrolled_at": NOW - 1000,
        "revoked": False,
        "online": False,
        "boot": "",
        "last_seen": 0.0,
        "reported": {},
        "desired": {},
        "desired_version": 0,
    }
    return Device(id=device_id, **{**known, **fields})
