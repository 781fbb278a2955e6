"""The learning loop on real digits: drift, harm, a new dataset version, gates."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sqlalchemy.orm import Session

from cloud import datasets, labels, registry
from cloud.blobs import Blobs
from cloud.datasets.testing import store_sample
from cloud.db.engine import Sessions
from cloud.db.tables import Project
from cloud.drift.testing import check, store_device, store_release
from cloud.gates import GateSpec, judge_candidate, overall
from cloud.registry import VariantRecord
from cloud.retrain import tick
from edge_agent.drift import signals
from edge_agent.wire.manifest import TensorSpec

CLASSES = [str(digit) for digit in range(10)]
IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8))
Images = NDArray[np.float32]


class Neighbours:
    """A real, if small, classifier: the nearest training image of each class."""

    def __init__(self, data: datasets.Data) -> None:
        part = data.part("train")
        self._known = part.inputs["image"].reshape(len(part), -1)
        self._labels = part.labels

    def scores(self, images: Images) -> NDArray[np.float64]:
        flat = images.reshape(len(images), -1)
        cross = flat @ self._known.T
        distance = (flat**2).sum(1)[:, None] + (self._known**2).sum(1)[None] - 2 * cross
        nearest = np.stack(
            [distance[:, self._labels == digit].min(axis=1) for digit in range(10)], axis=1
        )
        logits = -nearest / 100
        weights = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def answers(self, data: datasets.Data) -> dict[str, NDArray[np.int64]]:
        splits = sorted(set(data.split) - {"train"})
        return {
            split: self.scores(data.part(split).inputs["image"]).argmax(axis=1) for split in splits
        }


def digits() -> tuple[Images, NDArray[np.int64]]:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return bunch.images[order].astype(np.float32), bunch.target[order].astype(np.int64)


def turned(images: Images, degrees: float) -> Images:
    return np.asarray(
        ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1), np.float32
    )


def publish(session: Session, blobs: Blobs, model: Neighbours, data: datasets.Data) -> None:
    judged = data.part("golden", "eval")
    scores = model.scores(judged.inputs["image"])
    accuracy = float((scores.argmax(axis=1) == judged.labels).mean())
    registry.register_candidate(
        session,
        model="digits",
        version=1,
        project="digits",
        dataset=data.dataset,
        code_sha="c",
        job="job-1",
        metrics={},
        environment={},
        variants=[
            VariantRecord(
                "this-machine", "knn", "onnxruntime", "PASS", selected=True,
                accuracy={"accuracy": accuracy},
            )
        ],
    )  # fmt: skip
    for state in ("approved", "published", "champion"):
        registry.transition(session, "digits", 1, state, "admin")  # type: ignore[arg-type]
    reference = signals({"image": judged.inputs["image"]}, scores)
    store_release(session, blobs, reference, [IMAGE], labels=CLASSES)


def serve(
    session: Session,
    blobs: Blobs,
    model: Neighbours,
    images: Images,
    truth: NDArray[np.int64],
    start: float,
    *,
    feedback: bool,
) -> None:
    """Uniform samples of these requests, and what the user said to each answer."""
    for row, scores in enumerate(model.scores(images)):
        prediction = f"{start:.0f}-{row}"
        store_sample(
            session, blobs, prediction, {"image": images[row : row + 1]},
            taken_at=start + row, predicted=CLASSES[int(scores.argmax())], scores=scores,
        )  # fmt: skip
        if feedback:
            label = CLASSES[int(truth[row])]
            labels.add(session, "digits", prediction, label, "correction", at=start + row)


def test_turned_inputs_end_in_a_better_candidate(sessions: Sessions, blobs: Blobs) -> None:
    images, truth = digits()
    field_images, field_truth = images[1400:], truth[1400:]
    with sessions.begin() as session:
        policy = {"min_labels": 60, "max_accuracy_drop_points": 5, "cooldown_s": 1}
        session.add(Project(name="digits", code_sha="c", spec={"retrain": policy}, applied_at=0.0))
        store_device(session, "dev-1")
        table = datasets.tabulate({"image": images[:1400]}, truth[:1400], classes=CLASSES)
        base = datasets.create(session, blobs, "digits", "labelled", table, at=1.0)
        data = datasets.read(session, blobs, base.id)
        champion = Neighbours(data)
        publish(session, blobs, champion, data)

        serve(session, blobs, champion, field_images[:80], field_truth[:80], 1000.0, feedback=True)
        assert check(session, blobs, "digits", 1, 2000.0)[0].verdict == "ok"
        assert tick(session, 2000.0)[0].decision.action == "none"

        bent = turned(field_images[80:], 45)
        serve(session, blobs, champion, bent[:60], field_truth[80:140], 3000.0, feedback=False)
        assert check(session, blobs, "digits", 1, 4000.0)[0].verdict == "drift"
        assert tick(session, 4000.0)[0].decision.action == "ask_labels"

        serve(session, blobs, champion, bent[60:], field_truth[140:], 5000.0, feedback=True)
        decision = tick(session, 6000.0)[0].decision
        assert decision.action == "retrain", decision.reason

        grown = datasets.collect_field(session, blobs, "digits", "digits", base.id)
        data = datasets.read(session, blobs, grown.id)
        assert len(data.part("field")) >= 50

    candidate = Neighbours(data)
    splits = {split: data.part(split).labels for split in ("golden", "eval", "field")}
    results = judge_candidate(
        champion.answers(data), candidate.answers(data), splits, GateSpec(), classes=CLASSES
    )
    assert overall(results) == "pass", [(r.gate, r.verdict, r.reason) for r in results]
    field = next(result for result in results if result.gate == "field_improvement")
    assert field.evidence["n"] == len(data.part("field"))

    again = judge_candidate(
        champion.answers(data), champion.answers(data), splits, GateSpec(), classes=CLASSES
    )
    assert overall(again) != "pass"  # the champion itself is no improvement in the field
