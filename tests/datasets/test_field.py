from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy.orm import Session

from cloud import datasets, labels
from cloud.blobs import Blobs
from cloud.datasets.testing import store_sample
from cloud.db.engine import Sessions

CLASSES = [str(digit) for digit in range(10)]


def images(n: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).random((n, 8, 8)).astype(np.float32)


def base(session: Session, blobs: Blobs) -> datasets.Data:
    table = datasets.tabulate({"image": images(200, 0)}, [1] * 200, classes=CLASSES)
    version = datasets.create(session, blobs, "digits", "labelled", table)
    return datasets.read(session, blobs, version.id)


def collect(session: Session, blobs: Blobs, dataset: str) -> datasets.Data:
    version = datasets.collect_field(session, blobs, "digits", "digits", dataset)
    assert version.parent == dataset
    return datasets.read(session, blobs, version.id)


def test_labelled_samples_join_the_base_and_some_are_held_out(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        for row, image in enumerate(images(100, 1)):
            store_sample(session, blobs, f"p{row}", {"image": image[None]}, taken_at=row)
            if row < 80:
                labels.add(session, "digits", f"p{row}", "7", "correction")
        grown = collect(session, blobs, start.dataset)
    assert len(grown) == 280
    np.testing.assert_array_equal(grown.inputs["image"][:200], start.inputs["image"])
    np.testing.assert_array_equal(grown.inputs["image"][200:], images(100, 1)[:80])
    assert set(grown.labels[200:]) == {7}
    assert set(grown.split[200:]) == {"train", "field"}
    assert 10 <= len(grown.part("field")) <= 40
    assert set(grown.source[200:]) == {"field"}
    np.testing.assert_array_equal(grown.part("golden").row_sha, start.part("golden").row_sha)


def test_a_held_out_row_stays_held_out_in_later_versions(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        first = start
        for batch in (1, 2):
            for row, image in enumerate(images(50, batch)):
                store_sample(session, blobs, f"p{batch}-{row}", {"image": image[None]})
                labels.add(session, "digits", f"p{batch}-{row}", "7", "human")
            if batch == 1:
                first = collect(session, blobs, start.dataset)
        second = collect(session, blobs, first.dataset)
        from_scratch = collect(session, blobs, start.dataset)
    held_out = set(first.part("field").row_sha)
    assert held_out <= set(second.part("field").row_sha)
    assert set(from_scratch.part("field").row_sha) == set(second.part("field").row_sha)
    assert not held_out & set(second.part("train").row_sha)


def test_the_newest_human_label_is_taken_also_for_rows_collected_before(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        store_sample(session, blobs, "p", {"image": images(1, 1)})
        labels.add(session, "digits", "p", "4", "correction", at=1.0)
        labels.add(session, "digits", "p", "5", "human", at=2.0)
        labels.add(session, "digits", "p", "6", "auto", at=3.0)
        first = collect(session, blobs, start.dataset)
        assert first.labels[-1] == 5
        labels.add(session, "digits", "p", "8", "human", at=4.0)
        second = collect(session, blobs, first.dataset)
    assert len(second) == len(first)
    assert second.labels[-1] == 8
    assert second.split[-1] == first.split[-1]


def test_one_prediction_sampled_twice_is_one_row(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        for policy in ("event", "uniform"):
            store_sample(session, blobs, "p", {"image": images(1, 1)}, policy=policy)  # type: ignore[arg-type]
        labels.add(session, "digits", "p", "4", "correction")
        assert len(collect(session, blobs, start.dataset)) == 201


def test_an_input_of_the_base_never_changes_its_split_or_label(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        golden = start.part("golden").inputs["image"]
        for row, image in enumerate([*golden, images(1, 1)[0]]):
            store_sample(session, blobs, f"p{row}", {"image": image[None]})
            labels.add(session, "digits", f"p{row}", "9", "correction")
        grown = collect(session, blobs, start.dataset)
    assert len(grown) == 201
    assert set(grown.part("golden").labels) == {1}


def test_unusable_samples_are_left_out_and_counted(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        store_sample(session, blobs, "batch", {"image": images(2, 1)})
        store_sample(session, blobs, "dropped", {"other": images(1, 2)})
        store_sample(session, blobs, "class", {"image": images(1, 3)})
        broken = store_sample(session, blobs, "broken", {"image": images(1, 4)})
        broken.blob = blobs.put(b"no zstd frame")
        for prediction in ("batch", "dropped", "broken"):
            labels.add(session, "digits", prediction, "1", "human")
        labels.add(session, "digits", "class", "eleven", "human")
        with pytest.raises(datasets.NothingCollected) as nothing:
            datasets.collect_field(session, blobs, "digits", "digits", start.dataset)
    assert "1 of an unknown class, 2 of another shape, 1 undecodable" in str(nothing.value)


def test_automatic_labels_do_not_train(sessions: Sessions, blobs: Blobs) -> None:
    with sessions.begin() as session:
        start = base(session, blobs)
        store_sample(session, blobs, "p", {"image": images(1, 1)})
        labels.add(session, "digits", "p", "4", "auto")
        with pytest.raises(datasets.NothingCollected):
            datasets.collect_field(session, blobs, "digits", "digits", start.dataset)
