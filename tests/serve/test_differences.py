"""Counting how two versions answer the same inputs."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.runtime import Tensors
from edge_agent.serve.differences import Differences
from edge_agent.wire.manifest import Manifest, ModelSpec


def manifest(*labels: str) -> Manifest:
    network = ModelSpec(runtime="onnxruntime", file="f", inputs=(), outputs=())
    return Manifest(
        model="m", version=1, profile="p", variant="v", inputs=(), outputs=(), labels=labels,
        pipeline=(), network=network, files=(),
    )  # fmt: skip


def scores(*rows: list[float]) -> Tensors:
    return {"scores": np.float32(rows)}


AB = manifest("a", "b")


def test_items_with_another_top_class_disagree_and_numbers_are_summed() -> None:
    found = Differences()
    live, other = scores([0.9, 0.1], [0.2, 0.8]), scores([0.8, 0.2], [0.7, 0.3])
    found.add(live, AB, other, AB, 2)
    report = found.report()
    assert (report.compared, report.disagreed, report.scored) == (2, 1, 2)
    assert report.abs_max == pytest.approx(0.5)
    assert report.abs_mean == pytest.approx((0.1 + 0.1 + 0.5 + 0.5) / 4)


def test_classes_are_compared_by_their_names() -> None:
    found = Differences()
    found.add(scores([0.9, 0.1]), AB, scores([0.1, 0.9]), manifest("b", "a"), 1)
    assert found.report().disagreed == 0


def test_the_label_output_decides_before_the_scores_do() -> None:
    found = Differences()
    live = scores([0.9, 0.1]) | {"label": np.int64([1])}
    found.add(live, AB, scores([0.1, 0.9]), AB, 1)
    assert found.report().disagreed == 0


@pytest.mark.parametrize(
    ("live", "other", "disagreed"),
    [
        ({"n": np.int64([1, 2])}, {"n": np.int64([1, 3])}, 1),
        ({"t": np.array([b"x", b"y"], object)}, {"t": np.array([b"x", b"y"], object)}, 0),
        ({"y": np.zeros((2, 3), np.float32)}, {"y": np.zeros((2, 4), np.float32)}, 2),
        ({"y": np.zeros((2, 3), np.float32)}, {"z": np.zeros((2, 3), np.float32)}, 2),
        ({"y": np.zeros((2, 3), np.float32)}, {"y": np.ones((2, 3), np.float32)}, 0),
        ({"y": np.float32([1, np.nan])}, {"y": np.float32([1, 0])}, 1),
        ({"y": np.float32([1, np.nan])}, {"y": np.float32([1, np.nan])}, 0),
    ],
    ids=["numbers", "text", "shape", "name", "values", "nan", "both nan"],
)
def test_without_classes_the_outputs_are_compared(
    live: Tensors, other: Tensors, disagreed: int
) -> None:
    found = Differences()
    found.add(live, manifest(), other, manifest(), 2)
    assert (found.report().compared, found.report().disagreed) == (2, disagreed)


def test_a_report_is_finite_whatever_the_networks_answer() -> None:
    found = Differences()
    wild = np.float64([[np.inf, -np.inf, np.nan, 1.7e308]])
    found.add({"y": wild}, manifest(), {"y": -wild}, manifest(), 1)
    report = found.report()
    assert np.isfinite([report.abs_max, report.abs_mean]).all()
    assert report.model_validate_json(report.model_dump_json()) == report


def test_nothing_compared_is_a_report_of_zeros() -> None:
    found = Differences()
    assert found.empty
    assert found.report().abs_mean == 0.0
