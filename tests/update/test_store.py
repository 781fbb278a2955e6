"""Slots and the switch: a power cut at any file operation leaves the old version or the new one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.update.errors import BadBundle
from edge_agent.update.files import Files
from edge_agent.update.store import MAX_TRIES, SlotStore
from edge_agent.wire.manifest import ReleaseInfo


class PowerCut(BaseException):
    """Nothing after this happens."""


class FailingFiles(Files):
    """Real file operations; number `fail_at` raises, before or after it was done."""

    def __init__(self, fail_at: int, error: BaseException, *, after: bool) -> None:
        self.count, self._fail_at, self._error, self._after = 0, fail_at, error, after

    def __getattribute__(self, name: str) -> object:
        operation = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(operation):
            return operation

        def counted(*arguments: object) -> object:
            self.count += 1
            due = self.count == self._fail_at
            if due and not self._after:
                raise self._error
            result = operation(*arguments)
            if due:
                raise self._error
            return result

        return counted


class Bundles:
    """Raw bundles of versions 1, 2, … as files, with what is signed about them."""

    def __init__(self, world, weights: Callable[[int], dict[str, bytes]], directory: Path) -> None:
        self.path: dict[int, Path] = {}
        self.sha: dict[int, str] = {}
        for version in (1, 2, 3):
            sha = world.bundle(version, {"model.onnx": weights(version)["model.onnx"][:2000]})
            self.path[version] = directory / f"{version}.bundle"
            self.path[version].write_bytes(world.blobs.get(sha))
            self.sha[version] = sha

    def info(self, number: int, **changes: object) -> ReleaseInfo:
        fields = {"model": "digits", "version": number, "profile": "this-machine"}
        return ReleaseInfo.model_validate(fields | {"counter": number, "encodings": ()} | changes)


@pytest.fixture
def bundles(world, weights, tmp_path: Path) -> Bundles:
    return Bundles(world, weights, tmp_path)


def install(store: SlotStore, bundles: Bundles, version: int, *, commit: bool = True) -> None:
    info, sha = bundles.info(version), bundles.sha[version]
    store.stage(bundles.path[version], sha, info)
    store.switch("digits", sha, info, f"models/digits/this-machine/{version}.bundle")
    if commit:
        store.commit("digits")


def version_on_disk(root: Path) -> int | None:
    """What the link and the database agree on."""
    store = SlotStore(root)
    try:
        store.recover()
        current = store.current("digits")
        link = root / "models" / "digits" / "current"
        if current is None:
            assert not link.exists()
            return None
        assert (link / "manifest.json").read_bytes()
        assert link.resolve() == current.path.resolve()
        assert (current.path / "model.onnx").read_bytes()
        assert not list(current.path.parent.glob(".tmp-*"))
        return current.version
    finally:
        store.close()


def operations(bundles: Bundles, root: Path) -> int:
    """How many file operations installing version 2 over 1 takes."""
    store = SlotStore(root)
    install(store, bundles, 1)
    files = FailingFiles(-1, PowerCut(), after=False)
    store._files = files
    install(store, bundles, 2)
    store.close()
    return files.count


@pytest.mark.parametrize("after", [False, True])
def test_a_power_cut_at_any_operation_leaves_the_old_version_or_the_new(
    bundles, tmp_path: Path, after: bool
) -> None:
    total = operations(bundles, tmp_path / "count")
    assert total > 8
    seen = []
    for fail_at in range(1, total + 1):
        root = tmp_path / f"cut-{fail_at}"
        store = SlotStore(root)
        install(store, bundles, 1)
        store._files = FailingFiles(fail_at, PowerCut(), after=after)
        with pytest.raises(PowerCut):
            install(store, bundles, 2)
        store.close()
        seen.append(version_on_disk(root))
    assert seen == sorted(seen) and set(seen) == {1, 2}


def test_a_full_disk_at_any_operation_leaves_the_old_version_or_the_new(
    bundles, tmp_path: Path
) -> None:
    for fail_at in range(1, operations(bundles, tmp_path / "count") + 1):
        root = tmp_path / f"full-{fail_at}"
        store = SlotStore(root)
        install(store, bundles, 1)
        store._files = FailingFiles(fail_at, OSError(28, "No space left"), after=False)
        with pytest.raises(OSError, match="No space"):
            install(store, bundles, 2)
        store._files = Files()
        current = store.current("digits")
        assert current is not None and not current.pending
        assert store.slot("digits", current.sha256)
        store.close()
        assert version_on_disk(root) in (1, 2)


def test_a_killed_process_leaves_the_old_version_or_the_new(bundles, tmp_path: Path) -> None:
    """SIGKILL for real, at three telling moments: staging, the database's commit, the rename."""
    script = """
import os, signal, sys
from pathlib import Path
from edge_agent.update.files import Files
from edge_agent.update.store import SlotStore
from edge_agent.wire.manifest import ReleaseInfo
root, bundle, sha, operation = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
class Killed(Files):
    pass
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(Killed, operation, die)
store = SlotStore(root, Killed())
info = ReleaseInfo(model="digits", version=2, profile="this-machine", counter=2, encodings=())
store.stage(bundle, sha, info)
store.switch("digits", sha, info, "t")
"""
    for operation, expected in (("write", 1), ("symlink", 2), ("rename", 1)):
        root = tmp_path / operation
        store = SlotStore(root)
        install(store, bundles, 1)
        store.close()
        child = subprocess.run(
            [sys.executable, "-c", script, root, bundles.path[2], bundles.sha[2], operation],
            check=False,
        )
        assert child.returncode == -signal.SIGKILL
        assert version_on_disk(root) == expected


def test_only_a_pending_version_is_reverted_by_restarts(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    for _ in range(3 * MAX_TRIES):
        assert store.recover() == []
    install(store, bundles, 2, commit=False)
    for _ in range(MAX_TRIES):
        assert store.recover() == []
    (reverted,) = store.recover()
    assert reverted.abandoned.version == 2
    assert reverted.restored is not None and reverted.restored.version == 1
    store.close()


def test_a_damaged_committed_slot_falls_back_to_the_one_before(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    install(store, bundles, 2)
    current = store.current("digits")
    assert current is not None
    (current.path / "manifest.json").unlink()
    store.close()
    assert version_on_disk(tmp_path / "store") == 1


def test_a_pending_version_never_becomes_what_a_revert_goes_back_to(
    bundles, tmp_path: Path
) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    install(store, bundles, 2, commit=False)
    install(store, bundles, 3, commit=False)
    restored = store.revert("digits")
    assert restored is not None and restored.version == 1
    store.close()


def test_two_versions_are_kept(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    for version in (1, 2, 3):
        install(store, bundles, version)
    slots = tmp_path / "store" / "models" / "digits" / "slots"
    assert {path.name for path in slots.iterdir()} == {bundles.sha[2], bundles.sha[3]}
    store.close()


@pytest.mark.parametrize("change", [{"version": 9}, {"profile": "other"}, {"model": "letters"}])
def test_a_bundle_whose_manifest_is_another_releases_is_refused(
    bundles, tmp_path: Path, change
) -> None:
    store = SlotStore(tmp_path / "store")
    with pytest.raises(BadBundle, match="not of the signed release"):
        store.stage(bundles.path[1], bundles.sha[1], bundles.info(1, **change))
    store.close()


def test_a_bundle_that_changed_on_disk_is_refused(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    data = bytearray(bundles.path[1].read_bytes())
    data[-2000] ^= 1
    bundles.path[1].write_bytes(data)
    with pytest.raises(BadBundle, match="not the signed one"):
        store.stage(bundles.path[1], bundles.sha[1], bundles.info(1))
    store.close()


def test_a_model_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    with pytest.raises(ValueError, match="not a model name"):
        store.slot("../../etc", "0" * 64)
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_leaves_nothing_of_what_was_being_staged(tmp_path: Path, bundles) -> None:
    files = FailingFiles(0, OSError(28, "No space left on device"), after=False)
    store = SlotStore(tmp_path / "update", files)
    files._fail_at = files.count + 4
    with pytest.raises(OSError, match="No space"):
        store.stage(bundles.path[1], bundles.sha[1], bundles.info(1))
    files._fail_at = 0
    assert list((tmp_path / "update" / "models" / "digits" / "slots").iterdir()) == []
    store.close()


def test_a_slot_serves_no_release_but_its_own(tmp_path: Path, bundles) -> None:
    store = SlotStore(tmp_path / "update")
    store.stage(bundles.path[1], bundles.sha[1], bundles.info(1))
    other = bundles.info(2)
    with pytest.raises(BadBundle):
        store.stage(bundles.path[1], bundles.sha[1], other)
    with pytest.raises(BadBundle):
        store.switch("digits", bundles.sha[1], other, "models/digits/this-machine/2.bundle")
    assert store.current("digits") is None
    store.close()
