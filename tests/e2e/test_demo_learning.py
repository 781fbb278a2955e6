"""What the demo's two versions left in the control plane's database: lineage, gates, bundles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import datasets
from cloud.blobs import Blobs
from cloud.db.engine import open_engine
from cloud.db.tables import GateDecision, ModelVersion, Variant
from tests.e2e.conftest import Demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROFILES = {"this-machine", "generic-x86-64"}


@pytest.fixture(scope="module")
def session(demo: Demo) -> Iterator[Session]:
    """Reads beside the running processes."""
    engine = open_engine(f"sqlite:///{demo.directory / 'cloud' / 'skerry.db'}")
    with Session(engine.execution_options(read_only=True)) as opened:
        yield opened
    engine.dispose()


def version(session: Session, number: int) -> ModelVersion:
    found = session.get(ModelVersion, ("digits", number))
    assert found is not None
    return found


def test_both_members_learn_and_every_recipe_leaves_a_bundle(demo: Demo, session: Session) -> None:
    members = version(session, 1).metrics["members"]
    assert set(members) == {"small", "large"}
    assert all(member["metrics"]["macro_f1"] >= 0.95 for member in members.values())
    blobs = Blobs((demo.directory / "cloud" / "blobs").as_uri())
    variants = session.scalars(select(Variant).where(Variant.version == 1))
    kept = {
        (variant.profile, variant.name.split("/")[1])
        for variant in variants
        if variant.bundle_sha and blobs.has(variant.bundle_sha)
    }
    assert kept >= {(p, r) for p in PROFILES for r in ("fp32", "ort-int8", "openvino-int8")}


def test_the_second_version_descends_from_the_first(session: Session) -> None:
    first, second = version(session, 1), version(session, 2)
    assert second.parent_version == 1
    assert second.metrics["members"]["small"]["warm_start"] is True
    data = datasets.get(session, second.dataset)
    assert data.parent == first.dataset
    assert data.manifest["splits"]["field"] > 100


def test_its_quantised_networks_keep_the_scales_of_the_first(session: Session) -> None:
    variants = session.scalars(
        select(Variant).where(Variant.version == 2, Variant.name.endswith("/ort-int8"))
    )
    notes = [" ".join(variant.measurement["notes"]) for variant in variants]
    assert notes
    assert all("parent version" in note for note in notes), notes


def test_its_gates_judged_it_against_the_champion_on_field_rows(session: Session) -> None:
    found = session.scalars(select(GateDecision).where(GateDecision.subject == "model:digits:2"))
    gates = {gate.gate: gate for gate in found}
    assert {gate.verdict for gate in gates.values()} == {"pass"}
    for profile in PROFILES:
        assert f"{profile}/non_inferiority" in gates
        evidence = gates[f"{profile}/field_improvement"].evidence
        assert evidence["candidate"] > evidence["champion"] + 0.15
