"""Groups in the store: at any cut all of a group are old, or all are new."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from cloud.publish import build_bundle
from edge_agent.update.errors import BadBundle, OnProbation
from edge_agent.update.files import Files
from edge_agent.update.store import MAX_TRIES, SlotStore, Switch
from edge_agent.wire.manifest import Manifest, ModelSpec, ReleaseInfo, StepSpec

from .conftest import IMAGE, PROFILE, SCORES
from .test_store import FailingFiles, PowerCut

MODELS = ("digits", "faces", "letters")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    root = tmp_path_factory.mktemp("bundles")
    made = {}
    for model in MODELS:
        for version in (1, 2):
            source = root / f"{model}-{version}"
            source.mkdir()
            (source / "model.onnx").write_bytes(f"{model} {version}".encode() * 50)
            manifest = Manifest(
                model=model, version=version, profile=PROFILE, variant="small/fp32",
                inputs=(IMAGE,), outputs=(SCORES,), pipeline=(StepSpec(name="model"),),
                network=ModelSpec(
                    runtime="onnxruntime", file="model.onnx", inputs=(IMAGE,), outputs=(SCORES,)
                ),
                files=(),
            )  # fmt: skip
            made[model, version] = root / f"{model}-{version}.bundle"
            made[model, version].write_bytes(build_bundle(source, manifest))
    return made


def switches(store: SlotStore, bundles, version: int, models=MODELS) -> list[Switch]:
    """Stage `version` of every model."""
    made = []
    for model in models:
        path = bundles[model, version]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        release = ReleaseInfo(
            model=model, version=version, profile=PROFILE, counter=version, encodings=()
        )
        store.stage(path, sha256, release)
        made.append(Switch(sha256, release, f"models/{model}/{PROFILE}/{version}.bundle"))
    return made


def install(store: SlotStore, bundles, version: int) -> None:
    store.switch_group(switches(store, bundles, version))
    store.commit(MODELS[0])


def versions_on_disk(root: Path) -> list[int | None]:
    """What links and database agree on, after a start."""
    store = SlotStore(root)
    try:
        store.recover()
        found: list[int | None] = []
        for model in MODELS:
            current = store.current(model)
            link = root / "models" / model / "current"
            assert link.exists() == (current is not None)
            if current is not None:
                assert link.resolve() == current.path.resolve()
            found.append(current.version if current else None)
        return found
    finally:
        store.close()


def operations(bundles, root: Path, *, back: bool) -> int:
    """File operations from the switch on, of a commit or of a revert."""
    store = SlotStore(root)
    install(store, bundles, 1)
    staged = switches(store, bundles, 2)
    store._files = files = FailingFiles(-1, PowerCut(), after=False)
    store.switch_group(staged)
    if back:
        store.revert("faces")
    else:
        store.commit("faces")
    store.close()
    return files.count


@pytest.mark.parametrize("back", [False, True], ids=["commit", "revert"])
@pytest.mark.parametrize("after", [False, True])
def test_fault_30_a_power_cut_at_any_operation_leaves_all_old_or_all_new(
    bundles, tmp_path: Path, after: bool, back: bool
) -> None:
    total = operations(bundles, tmp_path / "count", back=back)
    assert total >= 3 * 4
    seen = []
    for fail_at in range(1, total + 1):
        root = tmp_path / f"cut-{fail_at}"
        store = SlotStore(root)
        install(store, bundles, 1)
        staged = switches(store, bundles, 2)
        store._files = FailingFiles(fail_at, PowerCut(), after=after)
        with pytest.raises(PowerCut):
            store.switch_group(staged)
            if back:
                store.revert("faces")
            else:
                store.commit("faces")
        store.close()
        versions = versions_on_disk(root)
        assert versions in ([1, 1, 1], [2, 2, 2])
        seen.append(versions[0])
    # the database has switched before the first link is turned
    assert set(seen) == ({1, 2} if back else {2})


def test_fault_24_a_link_that_cannot_be_turned_takes_the_whole_group_back(
    bundles, tmp_path: Path
) -> None:
    total = operations(bundles, tmp_path / "count", back=False)
    gone_back = 0
    for fail_at in range(1, total + 1):
        root = tmp_path / f"full-{fail_at}"
        store = SlotStore(root)
        install(store, bundles, 1)
        staged = switches(store, bundles, 2)
        store._files = FailingFiles(fail_at, OSError(28, "No space left"), after=False)
        try:
            store.switch_group(staged)
        except OSError:
            gone_back += 1
            assert [store.current(model).version for model in MODELS] == [1, 1, 1]
            assert store.unit("digits") == []
        store._files = Files()
        store.close()
        assert versions_on_disk(root) in ([1, 1, 1], [2, 2, 2])
    assert gone_back >= 9


def test_starts_are_counted_for_the_group_as_a_whole(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    store.switch_group(switches(store, bundles, 2))
    for _ in range(MAX_TRIES):
        assert store.recover() == []
    assert {each.tries for each in store.unit("letters")} == {MAX_TRIES}
    assert [each.abandoned.model for each in store.recover()] == list(MODELS)
    assert [store.current(model).version for model in MODELS] == [1, 1, 1]
    store.close()


def test_a_group_with_a_member_that_is_not_staged_changes_nothing(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    staged = switches(store, bundles, 2)
    store.discard("letters", staged[2].sha256)
    with pytest.raises(BadBundle, match="not staged"):
        store.switch_group(staged)
    assert [store.current(model).version for model in MODELS] == [1, 1, 1]
    store.close()


def test_a_pending_group_is_not_torn_apart(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    store.switch_group(switches(store, bundles, 2))
    with pytest.raises(OnProbation, match="switched together with"):
        store.switch_group(switches(store, bundles, 1, models=MODELS[:1]))
    with pytest.raises(ValueError, match="one bundle a model"):
        store.switch_group([])
    store.close()


def test_versions_change_places_when_one_no_longer_loads(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    assert store.fall_back("digits") is None, "there is none before"
    install(store, bundles, 2)
    back = store.fall_back("digits")
    assert back is not None and back.version == 1 and not back.pending
    assert store.previous("digits").version == 2
    assert store.current("faces").version == 2
    store.close()
    assert versions_on_disk(tmp_path / "store") == [1, 2, 2]


def test_a_store_of_an_agent_that_knew_no_groups_is_taken_over(bundles, tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "store")
    install(store, bundles, 1)
    store.switch_group(switches(store, bundles, 2, models=MODELS[:1]))
    store.close()
    with sqlite3.connect(tmp_path / "store" / "state.sqlite") as database:
        database.executescript(
            "CREATE TABLE old AS SELECT model, tries FROM pending; DROP TABLE pending;"
            "CREATE TABLE pending(model TEXT PRIMARY KEY, tries INTEGER NOT NULL);"
            "INSERT INTO pending SELECT * FROM old; DROP TABLE old;"
        )
    database.close()
    store = SlotStore(tmp_path / "store")
    assert [each.model for each in store.unit("digits")] == ["digits"]
    assert store.revert("digits").version == 1
    store.close()
