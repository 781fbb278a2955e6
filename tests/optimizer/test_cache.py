from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimizer.cache import ENTRY_NAME, Cache, Entry, key_of, share, tensors_digest

KEY = key_of(what="a network")


def stored(cache: Cache, key: str = KEY, data: bytes = b"weights") -> Entry:
    with cache.making() as made:
        (made / "model.onnx").write_bytes(data)
        return cache.put("artifact", key, {"entry": "model.onnx"}, made)


def test_what_was_put_is_found_by_another_search(tmp_path: Path) -> None:
    stored(Cache(tmp_path))
    found = Cache(tmp_path).get("artifact", KEY)
    assert found is not None
    assert (found.value, found.files) == ({"entry": "model.onnx"}, ("model.onnx",))
    assert (found.directory / "model.onnx").read_bytes() == b"weights"
    assert Cache(tmp_path).get("accuracy", KEY) is None
    assert Cache(tmp_path).get("artifact", key_of(what="another")) is None


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.onnx", b"weighty"),
        ("model.onnx", b""),
        (ENTRY_NAME, b"{"),
        (ENTRY_NAME, b"[]"),
        (ENTRY_NAME, json.dumps({"value": {"entry": "x"}, "sha256": "", "files": []}).encode()),
    ],
)
def test_a_damaged_entry_is_discarded_and_made_again(
    tmp_path: Path, name: str, data: bytes
) -> None:
    cache = Cache(tmp_path)
    entry = stored(cache)
    (entry.directory / name).write_bytes(data)
    assert cache.get("artifact", KEY) is None
    assert not entry.directory.exists()
    stored(cache)
    assert cache.get("artifact", KEY) is not None


def test_an_entry_with_a_missing_file_is_discarded(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (stored(cache).directory / "model.onnx").unlink()
    assert cache.get("artifact", KEY) is None


def test_a_killed_search_leaves_no_entry_and_its_rest_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from optimizer.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).making() as made:\n"
        "    (made / 'model.onnx').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob("making-*"))) == 1
    assert Cache(tmp_path).get("artifact", KEY) is None
    assert list(tmp_path.glob("making-*")) == []


def test_what_another_search_is_making_is_left_alone(tmp_path: Path) -> None:
    with Cache(tmp_path).making() as made:
        Cache(tmp_path)
        assert made.is_dir()


def test_two_that_make_the_same_agree_on_one(tmp_path: Path) -> None:
    first, second = stored(Cache(tmp_path)), stored(Cache(tmp_path))
    assert first == second
    assert len(list((tmp_path / "artifact").iterdir())) == 1


def test_the_bound_removes_what_was_unused_for_longest(tmp_path: Path) -> None:
    old = Cache(tmp_path)
    for number in range(4):
        entry = stored(old, key_of(number=number), b"x" * 1000)
        os.utime(entry.directory, (number, number))
    cache = Cache(tmp_path, max_bytes=3800)
    assert cache.get("artifact", key_of(number=0)) is not None
    stored(cache, key_of(number=9), b"x" * 1000)
    kept = [n for n in (0, 1, 2, 3, 9) if cache.get("artifact", key_of(number=n))]
    assert kept == [0, 3, 9]


def test_what_this_search_uses_stays_whatever_the_bound(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=10)
    for number in range(3):
        stored(cache, key_of(number=number))
    assert all(cache.get("artifact", key_of(number=number)) for number in range(3))


def test_files_are_handed_out_without_a_second_copy(tmp_path: Path) -> None:
    entry = stored(Cache(tmp_path / "cache"))
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"older")
    entry.hand_out(out)
    assert (out / "model.onnx").samefile(entry.directory / "model.onnx")


def test_sharing_across_file_systems_copies(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system here")
    source = tmp_path / "a"
    source.write_bytes(b"data")
    target = elsewhere / f"skerry-{os.getpid()}"
    try:
        share(source, target)
        assert target.read_bytes() == b"data"
    finally:
        target.unlink()


def test_digests_of_tensors_tell_values_types_and_shapes_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    texts = np.array([b"ab", b"c"], dtype=object)
    different = [
        {"x": zeros}, {"y": zeros}, {"x": zeros.reshape(3, 2)}, {"x": zeros.astype(np.int32)},
        {"x": zeros + 1}, {"x": texts}, {"x": np.array([b"a", b"bc"], dtype=object)}, {},
    ]  # fmt: skip
    assert len({tensors_digest(tensors) for tensors in different}) == len(different)
    assert tensors_digest({"x": zeros.T.T}) == tensors_digest({"x": zeros.copy()})
