"""A small file is the old or the new one, whatever happens while it is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edge_agent.disk import write_whole


def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "public", b"1", mode=0o644)
        write_whole(tmp_path / "secret", b"2")
    finally:
        os.umask(before)
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"a long first text")
    write_whole(path, b"short")
    assert path.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "place"
    path.mkdir()
    (path / "kept").write_text("old")
    with pytest.raises(OSError, match="directory"):
        write_whole(path, b"new")
    assert (path / "kept").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_several_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [bytes([letter]) * 5000 for letter in b"abcdefgh"]
    threads = [threading.Thread(target=write_whole, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]
