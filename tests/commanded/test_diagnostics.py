"""The diagnostics archive: whole where it can be, bounded, and without secrets."""

from __future__ import annotations

import io
import json
import os
import zipfile

from edge_agent.commanded import diagnostics
from edge_agent.device.config import AgentSettings
from edge_agent.wire.commands import MAX_ATTACHMENT_BYTES


def _open(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


def test_a_member_that_fails_says_so_in_its_place_and_costs_no_other():
    def fails() -> bytes:
        raise OSError("the disk is gone")

    archive = _open(diagnostics.pack({"a.txt": fails, "b.txt": lambda: b"here"}))
    assert b"OSError: the disk is gone" in archive.read("a.txt")
    assert archive.read("b.txt") == b"here"


def test_the_archive_is_bounded_however_much_there_is():
    noise = {f"{n}.bin": lambda: os.urandom(10 << 20) for n in range(20)}
    data = diagnostics.pack(noise)
    assert len(data) <= MAX_ATTACHMENT_BYTES
    archive = _open(data)
    assert archive.read("0.bin").endswith(b"[cut here]\n")
    assert b"19.bin" in archive.read("left-out.txt")


def test_a_token_that_somebody_put_into_the_settings_is_not_sent():
    values = AgentSettings(http_token_file="s3cret-token").model_dump(mode="json")
    shown = diagnostics.settings(values)
    assert "s3cret" not in json.dumps(shown)
    assert shown["http_token_file"] == "(set)"
    assert shown["http_port"] == values["http_port"]


def test_disk_use_is_told_by_entry(tmp_path):
    (tmp_path / "update").mkdir()
    (tmp_path / "update" / "slot").write_bytes(b"x" * 100_000)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = diagnostics.disk(tmp_path)
    assert found["entries"]["update"] >= 100_000
    assert found["complete"]
    assert found["free"] > 0


def test_threads_are_shown_by_place_without_values():
    hidden = "a-value-of-a-local-variable"
    text = diagnostics.threads().decode()
    assert "MainThread" in text
    assert "test_threads_are_shown_by_place_without_values" in text
    assert hidden not in text
