"""A variant that was never measured on its profile is published only when somebody says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from cloud import registry, releases
from cloud.blobs import Blobs
from cloud.db.engine import Sessions
from cloud.db.tables import AuditEntry, Variant
from cloud.errors import Conflict
from cloud.registry import VariantRecord
from cloud.signing import ImageRepository, init_keys


def approve(sessions: Sessions, blobs: Blobs, *, predicted: bool) -> None:
    with sessions.begin() as session:
        registry.register_candidate(
            session, model="digits", version=1, project="digits", dataset="d", code_sha="c",
            job="j", metrics={}, environment={},
            variants=[
                VariantRecord(
                    "raspberry-pi-4", "small/ort-int8", "onnxruntime", "PASS", selected=True,
                    bundle_sha=blobs.put(b"bundle" * 100), bundle_length=600, predicted=predicted,
                )
            ],
        )  # fmt: skip
        registry.transition(session, "digits", 1, "approved", "ana")


def publish(sessions: Sessions, blobs: Blobs, image: ImageRepository, **fields: bool) -> list[str]:
    with sessions() as session:
        forms = releases.encode_version(session, blobs, "digits", 1, variant_ids={}, **fields)
    with sessions.begin() as session:
        made = releases.publish_version(
            session, blobs, image, "digits", 1, variant_ids={}, actor="ana", forms=forms, **fields
        )
        return [release.target for release in made]


@pytest.fixture
def image(tmp_path: Path) -> ImageRepository:
    return ImageRepository(tmp_path / "image", init_keys(tmp_path / "keys", "passphrase"))


def test_it_is_refused_with_the_way_out(sessions, tmp_path, image):
    blobs = Blobs((tmp_path / "blobs").as_uri())
    approve(sessions, blobs, predicted=True)
    with pytest.raises(Conflict, match=r"small/ort-int8 on raspberry-pi-4.*--allow-predicted"):
        publish(sessions, blobs, image)
    with pytest.raises(Conflict, match="predicted"), sessions.begin() as session:
        # whoever encoded before, with or without leave, does not publish without it
        releases.publish_version(
            session, blobs, image, "digits", 1, variant_ids={}, actor="ana", forms={}
        )


def test_it_is_published_when_allowed_and_the_audit_says_so(sessions, tmp_path, image):
    blobs = Blobs((tmp_path / "blobs").as_uri())
    approve(sessions, blobs, predicted=True)
    assert publish(sessions, blobs, image, allow_predicted=True) == [
        "models/digits/raspberry-pi-4/1.bundle"
    ]
    with sessions() as session:
        query = select(AuditEntry).where(AuditEntry.action == "release.published")
        assert session.scalars(query).one().detail["predicted"] is True
        assert session.scalars(select(Variant)).one().predicted


def test_what_was_measured_needs_no_leave(sessions, tmp_path, image):
    blobs = Blobs((tmp_path / "blobs").as_uri())
    approve(sessions, blobs, predicted=False)
    assert publish(sessions, blobs, image)
