from __future__ import annotations

import hashlib

import numpy as np
import pytest
import rfc8785

from cloud import datasets
from cloud.blobs import Blobs
from cloud.datasets import rows as rows_module
from cloud.datasets import versions
from cloud.db.engine import Sessions

CLASSES = ["zero", "one", "two"]


def inputs(n: int = 300, seed: int = 0) -> datasets.Tensors:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((n, 4, 4)).astype(np.float32),
        "age": rng.integers(0, 99, (n,)).astype(np.int64),
    }


def labels(n: int = 300) -> list[int]:
    return [row % 3 for row in range(n)]


def test_what_was_created_is_read_back(sessions: Sessions, blobs: Blobs) -> None:
    given = inputs()
    with sessions.begin() as session:
        table = datasets.tabulate(given, labels(), classes=CLASSES)
        version = datasets.create(session, blobs, "digits", "labelled", table)
        data = datasets.read(session, blobs, version.id)
    assert data.classes == tuple(CLASSES)
    assert data.inputs.keys() == given.keys()
    for name, array in given.items():
        assert data.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(data.inputs[name], array)
    assert data.labels.tolist() == labels()
    assert len(data.part("train")) + len(data.part("eval", "golden")) == 300
    assert set(data.part("golden").split) == {"golden"}


def test_the_id_is_the_digest_of_the_canonical_manifest(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        table = datasets.tabulate(inputs(), labels(), classes=CLASSES)
        version = datasets.create(session, blobs, "digits", "labelled", table)
        again = datasets.create(session, blobs, "digits", "labelled", table)
        assert again is version
        assert version.id == hashlib.sha256(rfc8785.dumps(version.manifest)).hexdigest()
        for shard in version.manifest["shards"]:
            assert hashlib.sha256(blobs.get(shard["sha256"])).hexdigest() == shard["sha256"]


def test_large_datasets_are_cut_into_shards(
    sessions: Sessions, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "SHARD_BYTES", 10_000)
    given = inputs()
    with sessions.begin() as session:
        table = datasets.tabulate(given, labels(), classes=CLASSES)
        version = datasets.create(session, blobs, "digits", "labelled", table)
        assert len(version.manifest["shards"]) > 3
        data = datasets.read(session, blobs, version.id)
    np.testing.assert_array_equal(data.inputs["image"], given["image"])
    np.testing.assert_array_equal(data.inputs["age"], given["age"])


def test_the_same_input_lands_in_the_same_split_in_every_import() -> None:
    given = inputs()
    first = datasets.tabulate(given, labels(), classes=CLASSES)
    order = np.random.default_rng(9).permutation(300)
    shuffled = {name: array[order] for name, array in given.items()}
    second = datasets.tabulate(shuffled, [2] * 300, classes=CLASSES)
    splits = dict(zip(first["row_sha"].to_pylist(), first["split"].to_pylist(), strict=True))
    for sha, split in zip(second["row_sha"].to_pylist(), second["split"].to_pylist(), strict=True):
        assert splits[sha] == split


def test_splits_have_about_the_wished_shares() -> None:
    shas = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(5000)]
    splits = datasets.assign_splits(shas, golden_share=0.2, eval_share=0.1, seed=1)
    assert splits.count("golden") / 5000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("eval") / 5000 == pytest.approx(0.1, abs=0.02)


def test_an_input_cannot_be_trained_on_and_judged_by(sessions: Sessions, blobs: Blobs) -> None:
    given = {"image": np.zeros((2, 4), np.float32)}
    table = datasets.tabulate(given, [0, 0], classes=CLASSES, split=["train", "golden"])
    with sessions.begin() as session, pytest.raises(datasets.Leak, match="1 inputs"):
        datasets.create(session, blobs, "digits", "labelled", table)


def test_a_child_keeps_the_golden_rows_of_its_parent(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        table = datasets.tabulate(inputs(), labels(), classes=CLASSES)
        parent = datasets.create(session, blobs, "digits", "labelled", table)
        fewer = table.filter([split != "golden" for split in table["split"].to_pylist()])
        with pytest.raises(datasets.GoldenChanged):
            datasets.create(session, blobs, "digits", "labelled", fewer, parent.id)
        other = datasets.tabulate(inputs(seed=1), labels(), classes=CLASSES)
        with pytest.raises(datasets.GoldenChanged):
            datasets.create(session, blobs, "digits", "labelled", other, parent.id)


def test_an_unknown_version_is_named(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session, pytest.raises(datasets.UnknownDataset, match="beef"):
        datasets.read(session, blobs, "beef")


@pytest.mark.parametrize(
    ("arrays", "given", "message"),
    [
        ({"a": np.zeros((3, 2))}, [0, 1], "3 rows need 3 integer labels"),
        ({"a": np.zeros((2, 2)), "b": np.zeros((3, 2))}, [0, 1], "differ in their number of rows"),
        ({"a": np.zeros((2, 2))}, [0, 3], "between 0 and 2"),
        ({"a": np.zeros((2, 2))}, [-1, 0], "between 0 and 2"),
        ({"a": np.zeros((2, 2), np.complex64)}, [0, 1], "arrays of complex64 cannot be stored"),
        ({"a": np.zeros((2, 0))}, [0, 1], "'a' has no elements"),
        ({}, [], "leading batch axis"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    arrays: datasets.Tensors, given: list[int], message: str
) -> None:
    with pytest.raises(datasets.BadRows, match=message):
        datasets.tabulate(arrays, given, classes=CLASSES)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(datasets.BadRows, match=", ".join(rows_module.SPLITS)):
        datasets.tabulate({"a": np.zeros((1, 2))}, [0], classes=CLASSES, split=["test"])


def test_held_out_rows_are_those_that_were_never_trained_on(
    sessions: Sessions, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "SHARD_BYTES", 10_000)  # so that they lie in several shards
    with sessions.begin() as session:
        table = datasets.tabulate(inputs(), labels(), classes=CLASSES)
        version = datasets.create(session, blobs, "digits", "labelled", table)
        data = datasets.read(session, blobs, version.id)
        held_out = datasets.held_out(session, blobs, version.id, 10_000)
        few = datasets.held_out(session, blobs, version.id, 7)
    wanted = data.part("eval", "golden", "field").inputs
    for name in wanted:
        np.testing.assert_array_equal(held_out[name], wanted[name])
        np.testing.assert_array_equal(few[name], wanted[name][:7])


def test_a_version_without_held_out_rows_says_so(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        table = datasets.tabulate(inputs(9), labels(9), classes=CLASSES, split=["train"] * 9)
        version = datasets.create(session, blobs, "digits", "labelled", table)
        with pytest.raises(datasets.BadRows, match="no rows out of training"):
            datasets.held_out(session, blobs, version.id, 10)
        with pytest.raises(datasets.UnknownDataset):
            datasets.held_out(session, blobs, "none", 10)
