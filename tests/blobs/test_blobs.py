"""The blob store on a real directory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cloud.blobs import BlobMissing, Blobs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs of a plane"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    return Blobs(root.as_uri())


def test_a_blob_is_named_by_its_digest_and_read_back(blobs: Blobs) -> None:
    sha256 = blobs.put(b"weights")
    assert sha256 == hashlib.sha256(b"weights").hexdigest()
    assert blobs.get(sha256) == b"weights"
    assert blobs.get_range(sha256, 2, 3) == b"igh"
    assert blobs.has(sha256)


def test_an_empty_blob_is_a_blob(blobs: Blobs) -> None:
    assert blobs.get(blobs.put(b"")) == b""


def test_what_is_not_there_is_missing(blobs: Blobs) -> None:
    assert not blobs.has("0" * 64)
    with pytest.raises(BlobMissing):
        blobs.get("0" * 64)
    with pytest.raises(BlobMissing):
        blobs.get_range("0" * 64, 0, 1)


def test_a_blob_lies_below_the_directory_of_its_url(blobs: Blobs, root: Path) -> None:
    sha256 = blobs.put(b"weights")
    assert (root / sha256[:2] / sha256).read_bytes() == b"weights"


def test_a_blob_that_a_power_cut_left_short_is_written_again(blobs: Blobs, root: Path) -> None:
    sha256 = blobs.put(b"weights")
    os.truncate(root / sha256[:2] / sha256, 3)
    assert blobs.put(b"weights") == sha256
    assert blobs.get(sha256) == b"weights"


def test_a_file_is_stored_by_its_bytes(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    assert blobs.put_file(path) == blobs.put(b"weights")
