"""Bundles are deterministic and checked; releases count up and reuse what is encoded."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
from pathlib import Path

import pytest
import zstandard

from cloud.blobs import BlobMissing, Blobs
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Release
from cloud.publish import (
    CHUNK_BYTES,
    DELTA_BASES,
    DELTA_RATIO,
    BadBundle,
    bases_of,
    build_bundle,
    director_target,
    forms_of,
    hash_files,
    publish_release,
)
from cloud.signing import ImageRepository, init_keys
from edge_agent.wire.manifest import Encoding, Manifest, ModelSpec, ReleaseInfo, StepSpec


@pytest.fixture
def image(tmp_path: Path) -> ImageRepository:
    return ImageRepository(tmp_path / "image", init_keys(tmp_path / "keys", "passphrase"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An unpacked bundle with its manifest."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"weights" * 30_000)
    (directory / "golden.npz").write_bytes(b"answers")
    manifest = Manifest(
        model="digits", version=1, profile="this-machine", variant="v", inputs=(), outputs=(),
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=(), outputs=()),
        files=hash_files(directory),
    )  # fmt: skip
    (directory / "manifest.json").write_bytes(manifest.encode())
    return directory


def test_the_same_files_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first = build_bundle(source)
    os.utime(source / "model.onnx", (1, 1))
    (source / "model.onnx").chmod(0o600)
    assert build_bundle(source) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getnames() == ["manifest.json", "golden.npz", "model.onnx"]


def test_files_that_the_manifest_does_not_list_stay_out(source: Path) -> None:
    (source / "notes.txt").write_text("not for devices")
    with tarfile.open(fileobj=io.BytesIO(build_bundle(source))) as tar:
        assert "notes.txt" not in tar.getnames()


@pytest.mark.parametrize("harm", ["changed", "missing", "link", "no manifest", "bad manifest"])
def test_a_directory_that_breaks_its_manifest_is_refused(source: Path, harm: str) -> None:
    model, manifest = source / "model.onnx", source / "manifest.json"
    if harm == "changed":
        model.write_bytes(b"other")
    elif harm == "missing":
        model.unlink()
    elif harm == "link":
        model.rename(source / "elsewhere")
        model.symlink_to(source / "elsewhere")
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{}")
    with pytest.raises(BadBundle, match=r"model\.onnx|manifest\.json"):
        build_bundle(source)


def release_of(source: Path, blobs: Blobs, sessions: Sessions, image: ImageRepository):
    sha = blobs.put(build_bundle(source))
    with sessions.begin() as session:
        return publish_release(session, blobs, image, "digits", 1, "this-machine", sha)


def test_a_release_names_forms_whose_chunks_verify(source, blobs, sessions, image) -> None:
    release = release_of(source, blobs, sessions, image)
    info = ReleaseInfo.model_validate(release.info)
    assert [form.algo for form in info.encodings] == ["zstd", "raw"]
    raw = blobs.get(release.bundle_sha)
    assert zstandard.decompress(blobs.get(info.encodings[0].sha256)) == raw
    for form in info.encodings:
        listed, data = blobs.get(form.chunks_sha256), blobs.get(form.sha256)
        assert form.length == len(data)
        for index in range(len(listed) // 32):
            chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            assert hashlib.sha256(chunk).digest() == listed[32 * index : 32 * index + 32]


def test_bytes_that_do_not_compress_are_offered_raw_only(source, blobs, sessions, image) -> None:
    sha = blobs.put(os.urandom(100_000))
    with sessions.begin() as session:
        release = publish_release(session, blobs, image, "digits", 1, "this-machine", sha)
    assert [form["algo"] for form in release.info["encodings"]] == ["raw"]


def test_the_same_bundle_again_is_a_new_release_of_the_same_forms(
    source, blobs, sessions, image
) -> None:
    first = release_of(source, blobs, sessions, image)
    second = release_of(source, blobs, sessions, image)
    assert (first.counter, second.counter) == (1, 2)
    assert first.info["encodings"] == second.info["encodings"]
    assert second.target == "models/digits/this-machine/2.bundle"


def test_a_counter_signed_in_a_lost_transaction_is_not_used_again(
    source, blobs, sessions, image
) -> None:
    sha = blobs.put(build_bundle(source))
    with pytest.raises(RuntimeError), sessions.begin() as session:
        publish_release(session, blobs, image, "digits", 1, "this-machine", sha)
        raise RuntimeError("power cut")
    assert release_of(source, blobs, sessions, image).counter == 2


def test_what_was_encoded_before_the_transaction_is_not_encoded_in_it(
    source, blobs, sessions, image, tmp_path
) -> None:
    sha = blobs.put(build_bundle(source))
    with read_only(sessions)() as session:
        forms = forms_of(session, blobs, sha)
    nothing = Blobs((tmp_path / "empty").as_uri())  # whoever encodes must read the bundle
    with sessions.begin() as session:
        release = publish_release(session, nothing, image, "digits", 1, "this-machine", sha, forms)
    assert [form["algo"] for form in release.info["encodings"]] == ["zstd", "raw"]


def test_a_missing_bundle_is_refused(blobs, sessions, image) -> None:
    with pytest.raises(BlobMissing), sessions.begin() as session:
        publish_release(session, blobs, image, "digits", 1, "this-machine", "0" * 64)
    assert image.highest_counter("digits", "this-machine") == 0


def test_what_the_director_signs_is_what_the_image_repository_signed(
    source, blobs, sessions, image
) -> None:
    release = release_of(source, blobs, sessions, image)
    target = director_target(release, generation=3, probation_s=5.0)
    assert target.release.model_dump(mode="json") == release.info
    assert (target.path, target.length, target.sha256) == (
        release.target,
        release.length,
        release.bundle_sha,
    )


def sparse(seed: int, changed: int = 2_000) -> bytes:
    """Noise of which a few bytes differ by `seed`."""
    data = bytearray(random.Random(0).randbytes(200_000))
    data[:changed] = random.Random(seed).randbytes(changed)
    return bytes(data)


def publish(sessions: Sessions, blobs: Blobs, image: ImageRepository, data: bytes) -> Release:
    """With deltas against what was published before."""
    sha = blobs.put(data)
    with sessions.begin() as session:
        forms = forms_of(session, blobs, sha, bases_of(session, "digits", "this-machine"))
        return publish_release(session, blobs, image, "digits", 1, "this-machine", sha, forms)


def forms_in(release: Release) -> list[Encoding]:
    return list(ReleaseInfo.model_validate(release.info).encodings)


def bases_in(release: Release) -> set[str]:
    return {form.base_sha256 for form in forms_in(release) if form.base_sha256 is not None}


def test_a_version_is_offered_as_deltas_against_the_last_ones(sessions, blobs, image) -> None:
    before = [publish(sessions, blobs, image, sparse(seed)).bundle_sha for seed in range(1, 6)]
    newest = publish(sessions, blobs, image, sparse(9))
    assert bases_in(newest) == set(before[-DELTA_BASES:])
    lengths = [form.length for form in forms_in(newest)]
    assert lengths == sorted(lengths)
    assert lengths[0] < 0.05 * newest.length


def test_the_first_version_is_offered_in_full(sessions, blobs, image) -> None:
    assert bases_in(publish(sessions, blobs, image, sparse(1))) == set()


def test_a_delta_that_saves_too_little_is_not_offered(sessions, blobs, image) -> None:
    publish(sessions, blobs, image, sparse(1))
    most = int(200_000 * (DELTA_RATIO + 0.02))
    assert bases_in(publish(sessions, blobs, image, sparse(2, most))) == set()


def test_versions_of_other_profiles_and_staged_ones_are_no_bases(sessions, blobs, image) -> None:
    publish(sessions, blobs, image, sparse(1))
    staged = publish(sessions, blobs, image, sparse(2))
    with sessions.begin() as session:
        session.get_one(Release, staged.target).awaiting = True
    with read_only(sessions)() as session:
        assert bases_of(session, "digits", "another") == []
        assert staged.bundle_sha not in bases_of(session, "digits", "this-machine")


def test_a_base_that_is_gone_or_no_time_leaves_the_full_form(
    sessions, blobs, image, tmp_path, caplog
) -> None:
    old = publish(sessions, blobs, image, sparse(1)).bundle_sha
    sha = blobs.put(sparse(2))
    with read_only(sessions)() as session:
        late = forms_of(session, blobs, sha, [old], budget_s=0)
        (tmp_path / "blobs" / old[:2] / old).unlink()
        gone = forms_of(session, blobs, sha, [old])
    assert {form.algo for form in (*late.encodings, *gone.encodings)} == {"raw"}
    assert "delta.base_missing" in caplog.text


def test_going_back_offers_the_delta_of_the_way_back(sessions, blobs, image) -> None:
    first = publish(sessions, blobs, image, sparse(1))
    second = publish(sessions, blobs, image, sparse(2))
    back = publish(sessions, blobs, image, sparse(1))
    assert back.bundle_sha == first.bundle_sha
    assert bases_in(back) == {second.bundle_sha}
