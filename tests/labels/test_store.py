from __future__ import annotations

import numpy as np
import pytest

from cloud import labels
from cloud.blobs import Blobs
from cloud.datasets.testing import store_sample
from cloud.db.engine import Sessions

IMAGE = {"image": np.zeros((1, 8, 8), np.float32)}


def test_the_newest_human_label_wins(sessions: Sessions) -> None:
    with sessions.begin() as session:
        labels.add(session, "digits", "p", "3", "human", at=3.0)
        labels.add(session, "digits", "p", "1", "correction", at=1.0)
        labels.add(session, "digits", "p", "9", "auto", at=9.0)
        assert labels.newest(session, "digits", ["p"])["p"].label == "3"


def test_an_automatic_label_holds_until_a_person_speaks(sessions: Sessions) -> None:
    with sessions.begin() as session:
        labels.add(session, "digits", "p", "9", "auto", at=9.0)
        assert labels.newest(session, "digits", ["p"])["p"].label == "9"
        labels.add(session, "digits", "p", "1", "correction", at=1.0)
        assert labels.newest(session, "digits", ["p"])["p"].label == "1"


def test_of_two_labels_at_the_same_time_the_later_row_wins(sessions: Sessions) -> None:
    with sessions.begin() as session:
        labels.add(session, "digits", "p", "1", "human", at=1.0)
        labels.add(session, "digits", "p", "2", "human", at=1.0)
        assert labels.newest(session, "digits", ["p"])["p"].label == "2"


def test_labels_of_other_projects_and_unlabelled_predictions_are_left_out(
    sessions: Sessions,
) -> None:
    with sessions.begin() as session:
        labels.add(session, "letters", "p", "a", "human")
        assert labels.newest(session, "digits", ["p", "q"]) == {}


def test_many_predictions_are_looked_up_in_one_call(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for number in range(1200):
            labels.add(session, "digits", f"p{number}", "1", "human", at=1.0)
        found = labels.newest(session, "digits", (f"p{number}" for number in range(1200)))
        assert len(found) == 1200


def test_two_devices_with_the_same_prediction_id_keep_their_own_labels(
    sessions: Sessions, blobs: Blobs
) -> None:
    with sessions.begin() as session:
        samples = [
            store_sample(session, blobs, "1", IMAGE, device=device) for device in ("one", "two")
        ]
        labels.add(session, "digits", "1", "7", "correction", device="one")
        found = labels.of_samples(session, "digits", samples)
        assert {key: label.label for key, label in found.items()} == {samples[0].id: "7"}


def test_an_unknown_source_is_refused(sessions: Sessions) -> None:
    with sessions.begin() as session, pytest.raises(labels.UnknownSource, match="correction"):
        labels.add(session, "digits", "p", "1", "guess")  # type: ignore[arg-type]
