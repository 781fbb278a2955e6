"""Every rule of trust as a table: what passes, and what is refused as what."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from tuf.api.metadata import TargetFile

from edge_agent.update import rules
from edge_agent.update.errors import (
    Disagreement,
    RolledBack,
    UntrustedMetadata,
    UpdateError,
    WrongDevice,
    WrongProfile,
)
from edge_agent.wire.manifest import Encoding, ReleaseInfo

TARGET = "models/digits/pi/3.bundle"
SHA, OTHER_SHA = "a" * 64, "b" * 64
MIB = 1 << 20
YEAR_2026 = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def form(**changes: Any) -> Encoding:
    fields: dict[str, Any] = {
        "algo": "raw", "sha256": SHA, "length": MIB, "chunks_sha256": OTHER_SHA,
    }  # fmt: skip
    return Encoding(**fields | changes)


def info(**changes: Any) -> ReleaseInfo:
    fields: dict[str, Any] = {
        "model": "digits", "version": 2, "profile": "pi", "counter": 3, "encodings": (form(),),
    }  # fmt: skip
    return ReleaseInfo(**fields | changes)


def imaged(length: int = MIB, hashes: Any = None, **changes: Any) -> TargetFile:
    custom = info(**changes).model_dump(mode="json")
    return TargetFile(length, hashes or {"sha256": SHA}, TARGET, {"custom": custom})


def directed(
    length: int = MIB, hashes: Any = None, *, custom: Any = None, **changes: Any
) -> TargetFile:
    word = {"release": info(**changes).model_dump(mode="json"), "generation": 7} | (custom or {})
    return TargetFile(length, hashes or {"sha256": SHA}, TARGET, {"custom": word})


def refusal(call: Any) -> type[UpdateError] | None:
    try:
        call()
    except UpdateError as error:
        return type(error)
    return None


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("clock", "bounds", "expected"),
    [
        (YEAR_2026, (), YEAR_2026),
        (YEAR_2026, (YEAR_2026 - 5, 0.0), YEAR_2026),
        (0.0, (YEAR_2026, 0.0), YEAR_2026),
        (0.0, (YEAR_2026, YEAR_2026 + 9), YEAR_2026 + 9),
        (-5e9, (), 0.0),
        (math.nan, (YEAR_2026,), YEAR_2026),
        (math.inf, (YEAR_2026,), YEAR_2026),
        (1e15, (), datetime(9999, 12, 31, tzinfo=UTC).timestamp()),
    ],
)
def test_fault_26_the_time_is_never_behind_what_is_certain(clock, bounds, expected) -> None:
    assert rules.trusted_time(clock, *bounds).timestamp() == expected


@pytest.mark.parametrize(
    ("issued_at", "attested"),
    [
        (1_700_000_000, 1_700_000_000.0),
        (1_999_999_999, 1_999_999_999.0),
        (2_000_000_000, 0.0),
        (0, 0.0),
        (-1, 0.0),
        (10**400, 0.0),
        (True, 0.0),
        (1.7e9, 0.0),
        ("now", 0.0),
        (None, 0.0),
    ],
)
def test_a_time_of_issue_that_makes_no_sense_attests_nothing(issued_at, attested) -> None:
    assert rules.attested_time(issued_at, 2e9) == attested


# ── one repository ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"timestamp.json": 5, "a.json": 2}, None),
        ({"timestamp.json": 6, "a.json": 2, "new.json": 1}, None),
        ({"timestamp.json": 4, "a.json": 2}, RolledBack),
        ({"timestamp.json": 5, "a.json": 1}, RolledBack),
        ({"timestamp.json": 5}, RolledBack),
        ({"timestamp.json": 5, "a.json": 2**53 - 1}, None),
        ({"timestamp.json": 5, "a.json": 2**53}, UntrustedMetadata),
        ({"timestamp.json": 10**40, "a.json": 2}, UntrustedMetadata),
    ],
)
def test_versions_never_go_back(versions, expected) -> None:
    marks = {"timestamp.json": 5, "a.json": 2}
    assert refusal(lambda: rules.check_versions("image", versions, marks)) is expected


@pytest.mark.parametrize(
    ("signed_for", "names", "delegates", "expected"),
    [
        ("dev-1", [], False, None),
        ("dev-1", [TARGET, "models/faces/pi/1.bundle"], False, None),
        ("dev-1", ["agent/digits/pi/1.bundle", TARGET], False, None),
        ("dev-2", [], False, WrongDevice),
        (None, [], False, WrongDevice),
        (["dev-1"], [], False, WrongDevice),
        ("dev-1", [TARGET], True, UntrustedMetadata),
        ("dev-1", [TARGET, "models/digits/pi/4.bundle"], False, UntrustedMetadata),
        ("dev-1", [TARGET, "models/digits/other/3.bundle"], False, UntrustedMetadata),
    ],
)
def test_a_directors_set_is_of_this_device_and_plain(
    signed_for, names, delegates, expected
) -> None:
    def check() -> None:
        rules.check_assignments("dev-1", signed_for, names, delegates=delegates)

    assert refusal(check) is expected


# ── one target ───────────────────────────────────────────────────────────────────────────────────

SHA512 = {"sha256": SHA, "sha512": "c" * 128}


@pytest.mark.parametrize(
    ("director", "image", "expected"),
    [
        (directed(), imaged(), None),
        (directed(hashes=SHA512), imaged(hashes=SHA512), None),
        (directed(hashes=SHA512), imaged(), Disagreement),
        (directed(), imaged(hashes=SHA512), Disagreement),
        (directed(hashes=SHA512 | {"sha512": "d" * 128}), imaged(hashes=SHA512), Disagreement),
        (directed(length=MIB + 1), imaged(), Disagreement),
        (directed(hashes={"sha256": OTHER_SHA}), imaged(), Disagreement),
        (directed(version=9), imaged(), Disagreement),
        (directed(custom={"release": None}), imaged(), Disagreement),
        (TargetFile(MIB, {"sha256": SHA}, TARGET), imaged(), Disagreement),
        (directed(custom={"generation": None}), imaged(), UntrustedMetadata),
        (directed(custom={"generation": True}), imaged(), UntrustedMetadata),
        (directed(custom={"generation": -1}), imaged(), UntrustedMetadata),
        (directed(custom={"generation": 2**60}), imaged(), UntrustedMetadata),
        (directed(custom={"probation_ms": 10**12}), imaged(), UntrustedMetadata),
        (directed(custom={"probation_ms": "1"}), imaged(), UntrustedMetadata),
        (directed(custom={"group": "both"}), imaged(), None),
        (directed(custom={"group": "no/name"}), imaged(), UntrustedMetadata),
        (directed(custom={"group": ["x"]}), imaged(), UntrustedMetadata),
        (directed(counter=4), imaged(counter=4), UntrustedMetadata),  # not this target's name
        (directed(model="faces"), imaged(model="faces"), UntrustedMetadata),
        (directed(length=MIB - 1), imaged(length=MIB - 1), UntrustedMetadata),
    ],
)
def test_what_both_repositories_say_of_a_target(director, image, expected) -> None:
    assert refusal(lambda: rules.agree(TARGET, director, image)) is expected


def test_what_both_agree_on_is_what_the_device_works_with() -> None:
    custom = {"probation_ms": 2500, "group": "both"}
    assigned = rules.agree(TARGET, directed(custom=custom), imaged())
    assert assigned == rules.Assigned(TARGET, MIB, SHA, info(), 7, 2.5, "both")
    assert rules.agree(TARGET, directed(), imaged()).probation_s == 10.0


@pytest.mark.parametrize(
    ("hashes", "expected"),
    [
        ({"sha256": SHA}, None),
        ({"sha256": SHA, "sha512": "0" * 128}, None),
        ({"sha256": SHA, "of-a-later-time": "whatever"}, None),
        ({"sha256": SHA, "shake_128": "00"}, None),
        ({"sha256": SHA, "sha512": "0" * 64}, UntrustedMetadata),
        ({"sha512": "0" * 128}, UntrustedMetadata),
        ({"sha256": SHA.upper()}, UntrustedMetadata),
        ({"sha256": SHA + "\n"}, UntrustedMetadata),
        ({"sha256": "../../../elsewhere"}, UntrustedMetadata),
        ({"sha256": 5}, UntrustedMetadata),
        ({}, UntrustedMetadata),
    ],
)
def test_hashes_are_there_and_well_formed(hashes, expected) -> None:
    assert refusal(lambda: rules.check_hashes(TARGET, hashes)) is expected


DELTA = {"algo": "delta", "base_sha256": OTHER_SHA, "sha256": OTHER_SHA}


@pytest.mark.parametrize(
    ("length", "changes", "expected"),
    [
        (MIB, {}, None),
        (0, {"encodings": ()}, None),
        (MIB, {"encodings": (form(algo="zstd", sha256=OTHER_SHA, length=10), form())}, None),
        (MIB, {"encodings": (form(**DELTA, length=MIB),)}, None),
        (MIB, {"encodings": (form(**DELTA, length=MIB + 1),)}, UntrustedMetadata),
        (MIB, {"encodings": (form(algo="zstd", length=MIB + 1),)}, UntrustedMetadata),
        (MIB, {"encodings": (form(length=MIB - 1),)}, UntrustedMetadata),
        (MIB, {"encodings": (form(sha256=OTHER_SHA),)}, UntrustedMetadata),
        (MIB, {"encodings": (form(),) * 32}, None),
        (MIB, {"encodings": (form(),) * 33}, UntrustedMetadata),
        (32 << 30, {"encodings": (form(length=32 << 30),)}, None),
        ((32 << 30) + 1, {"encodings": ()}, UntrustedMetadata),
        (1 << 30, {"chunk_bytes": 1024, "encodings": (form(length=1 << 30),)}, UntrustedMetadata),
        (MIB, {"counter": 2**53}, UntrustedMetadata),
        (MIB, {"version": 10**30}, UntrustedMetadata),
        (True, {"encodings": ()}, UntrustedMetadata),
        (1.5, {"encodings": ()}, UntrustedMetadata),
    ],
)
def test_attack_16_nothing_signed_is_without_bound(length, changes, expected) -> None:
    release = info(**changes)
    assert refusal(lambda: rules.check_lengths(TARGET, length, SHA, release)) is expected


@pytest.mark.parametrize(("profile", "expected"), [("pi", None), ("pi-5", WrongProfile)])
def test_attack_14_the_profile_is_this_devices(profile, expected) -> None:
    assert refusal(lambda: rules.check_profile(TARGET, info(), profile)) is expected


@pytest.mark.parametrize(("mark", "expected"), [(0, None), (3, None), (4, RolledBack)])
def test_attack_13_a_counter_never_goes_back(mark, expected) -> None:
    assert refusal(lambda: rules.check_counter(TARGET, 3, mark)) is expected
