"""The manifest of an unpacked bundle is read up to its limit and no further."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.pipeline import manifest_file
from edge_agent.wire.errors import MalformedMessage, MessageTooLarge
from edge_agent.wire.manifest import MAX_MANIFEST_BYTES
from tests.runtime.networks import write_bundle


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write_bundle(tmp_path)
    assert manifest_file.read(tmp_path) == written


def test_a_directory_without_one_has_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        manifest_file.read(tmp_path)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(MalformedMessage):
        manifest_file.read(tmp_path)


def test_a_file_of_any_length_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole: reading all of it would need a terabyte
    with pytest.raises(MessageTooLarge):
        manifest_file.read(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(MessageTooLarge):
        manifest_file.read(tmp_path)
