"""Identities of simulated devices: enrolled by claims, kept, and refused elsewhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from cryptography import x509

from fleet.client.client import Client
from fleet.simulate.errors import ForeignIdentities, SimulationError
from fleet.simulate.identities import identities, shares
from tests.api.conftest import api, plane

__all__ = ["api", "plane"]

PROFILES = ["raspberry-pi-5", "intel-n100", "raspberry-pi-5"]


def test_devices_enrol_once_and_are_there_the_next_time(api: Client, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = identities(
        api, tmp_path, PROFILES, prefix="idt", labels={"site": "a"},
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [member.device_id for member in first.members] == [f"idt-0000{n}" for n in range(3)]
    for member, profile in zip(first.members, PROFILES, strict=True):
        device = api.device(member.device_id)
        assert (device.profile, device.labels) == (profile, {"site": "a"})
        name = x509.load_pem_x509_certificate(member.chain.read_bytes()).subject
        assert name.rfc4514_string() == f"CN={member.device_id}"
        assert member.chain.stat().st_mode & 0o077 == 0
    used = len(api.claims())
    again = identities(api, tmp_path, PROFILES, prefix="idt")
    assert again == first and len(api.claims()) == used
    more = identities(api, tmp_path, [*PROFILES, "intel-n100"], prefix="idt")
    assert len(more.members) == 4 and len(api.claims()) == used + 1


def test_another_profile_under_the_same_name_is_refused(api: Client, tmp_path: Path) -> None:
    identities(api, tmp_path, PROFILES[:1], prefix="idu")
    with pytest.raises(ForeignIdentities, match="idu-00000 is enrolled there as 'raspberry-pi-5'"):
        identities(api, tmp_path, ["intel-n100"], prefix="idu")


def test_a_directory_of_another_control_plane_or_with_old_certificates_is_refused(
    api: Client, tmp_path: Path
) -> None:
    line = {"id": "elsewhere-00000", "profile": "intel-n100", "ends": time.time() + 1e7}
    (tmp_path / "devices.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ForeignIdentities, match="no device of this control plane"):
        identities(api, tmp_path, ["intel-n100"], prefix="elsewhere")
    (tmp_path / "devices.jsonl").write_text(json.dumps({**line, "ends": time.time()}) + "\n")
    with pytest.raises(ForeignIdentities, match="ends soon"):
        identities(api, tmp_path, ["intel-n100"], prefix="elsewhere")


def test_a_prefix_that_makes_no_names_is_refused(api: Client, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="makes no names"):
        identities(api, tmp_path, PROFILES, prefix="Über")


def test_profiles_are_mixed_evenly_in_proportion() -> None:
    mixed = shares(8, {"a": 3, "b": 1})
    assert Counter(mixed) == {"a": 6, "b": 2}
    assert Counter(mixed[:4]) == {"a": 3, "b": 1}
    with pytest.raises(SimulationError, match="weight above 0"):
        shares(3, {})
