"""Finished steps are found by what went into them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.blobs import Blobs
from cloud.db.engine import Sessions
from cloud.jobs.cache import Result, StepCache, blobs_of, step_key


class Counting:
    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.runs = 0

    def __call__(self) -> Result:
        self.runs += 1
        return {"weights_sha": self.blobs.put(b"weights"), "epochs": 3}


@pytest.fixture
def cache(sessions: Sessions, blobs: Blobs) -> StepCache:
    return StepCache(sessions, blobs)


def test_the_same_inputs_are_worked_on_once(cache: StepCache, blobs: Blobs) -> None:
    compute = Counting(blobs)
    first = cache.once("train", {"data": "a", "lr": 0.1}, compute)
    assert cache.once("train", {"lr": 0.1, "data": "a"}, compute) == first
    assert compute.runs == 1


def test_any_other_input_is_other_work(cache: StepCache, blobs: Blobs) -> None:
    compute = Counting(blobs)
    for step, inputs in (("train", {"a": 1}), ("train", {"a": 2}), ("export", {"a": 1})):
        cache.once(step, inputs, compute)  # type: ignore[arg-type]
    assert compute.runs == 3


def test_a_result_whose_blob_is_gone_is_made_again(
    cache: StepCache, blobs: Blobs, tmp_path: Path
) -> None:
    compute = Counting(blobs)
    result = cache.once("train", {}, compute)
    sha = str(result["weights_sha"])
    (tmp_path / "blobs" / sha[:2] / sha).unlink()
    cache.once("train", {}, compute)
    assert compute.runs == 2
    assert blobs.has(sha)


def test_a_failed_step_is_not_remembered(cache: StepCache, blobs: Blobs) -> None:
    def broken() -> Result:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.once("train", {}, broken)
    assert cache.once("train", {}, Counting(blobs))["epochs"] == 3


def test_keys_do_not_depend_on_order_and_blobs_are_found_in_depth() -> None:
    assert step_key("s", {"a": 1, "b": 2}) == step_key("s", {"b": 2, "a": 1})
    assert list(blobs_of({"items": [{"onnx_sha": "x"}], "sha": "y", "list_sha": ["z"]})) == [
        "x", "z",
    ]  # fmt: skip
