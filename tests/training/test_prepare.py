"""What reaches the network: the pipeline's own steps, and rows that checkers let through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloud.project import load_project
from cloud.training.arrays import Rows
from cloud.training.errors import BadData
from cloud.training.prepare import network_inputs

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def rows(count: int, blank: tuple[int, ...] = ()) -> Rows:
    images = np.random.default_rng(3).uniform(1, 16, (count, 8, 8)).astype(np.float32)
    images[list(blank)] = 0
    return Rows({"image": images}, np.arange(count, dtype=np.int64) % 10)


def test_the_network_sees_what_the_pipelines_steps_make_of_the_rows() -> None:
    data = rows(5)
    tensors, kept = network_inputs(load_project(DIGITS), DIGITS, data)
    assert list(tensors) == ["x"]
    np.testing.assert_array_equal(tensors["x"], (data.inputs["image"] / 16)[:, None])
    assert len(kept) == 5


def test_rows_that_a_checker_refuses_are_left_out_and_the_rest_keep_their_labels() -> None:
    tensors, kept = network_inputs(load_project(DIGITS), DIGITS, rows(600, blank=(3, 299)))
    assert len(tensors["x"]) == len(kept) == 598
    expected = np.delete(np.arange(600) % 10, [3, 299])
    np.testing.assert_array_equal(kept.labels, expected)


def test_data_of_which_nothing_reaches_the_network_is_refused() -> None:
    with pytest.raises(BadData, match=r"refuse every row \(blank"):
        network_inputs(load_project(DIGITS), DIGITS, rows(2, blank=(0, 1)))


def test_rows_survive_their_file(tmp_path: Path) -> None:
    data = Rows(
        rows(3).inputs,
        np.array([1, 2, 3]),
        np.array(["train", "eval", "golden"]),
        np.array([1.0, 0.5, 1.0]),
    )
    data.save(tmp_path / "rows.npz")
    back = Rows.open(tmp_path / "rows.npz")
    np.testing.assert_array_equal(back.inputs["image"], data.inputs["image"])
    assert back.part("eval", "golden").labels.tolist() == [2, 3]
    assert back.part("eval").weight.tolist() == [0.5]
