from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.pipeline import GoldenMismatch, golden
from tests.runtime.networks import digits_pipeline, images


@pytest.fixture
def known(tmp_path: Path) -> Path:
    inputs = {"image": images(4)}
    path = tmp_path / "golden.npz"
    golden.write(path, inputs, digits_pipeline(tmp_path).run(inputs).tensors)
    return path


def test_the_same_pipeline_reproduces_its_answers(known: Path, tmp_path: Path) -> None:
    golden.check(digits_pipeline(tmp_path), known, atol=1e-6)


def test_another_network_does_not(known: Path, tmp_path: Path) -> None:
    with pytest.raises(GoldenMismatch, match=r"output '\w+' differs"):
        golden.check(digits_pipeline(tmp_path, seed=1), known, atol=1e-3)


def test_a_label_must_be_equal_whatever_the_tolerance(known: Path, tmp_path: Path) -> None:
    inputs, outputs = golden.read(known)
    outputs["label"] = (outputs["label"] + 1) % 10
    golden.write(known, inputs, outputs)
    with pytest.raises(GoldenMismatch, match="output 'label' differs in 4 of 4"):
        golden.check(digits_pipeline(tmp_path), known, atol=100)


def test_nan_never_passes(known: Path, tmp_path: Path) -> None:
    inputs, outputs = golden.read(known)
    outputs["scores"] = np.full_like(outputs["scores"], np.nan)
    golden.write(known, inputs, outputs)
    with pytest.raises(GoldenMismatch):
        golden.check(digits_pipeline(tmp_path), known, atol=100)


def test_inputs_that_a_checker_rejects_are_a_mismatch(known: Path, tmp_path: Path) -> None:
    _, outputs = golden.read(known)
    golden.write(known, {"image": images(4) * 100}, outputs)
    with pytest.raises(GoldenMismatch, match="not answered: out_of_range"):
        golden.check(digits_pipeline(tmp_path), known, atol=1)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_missing_or_damaged_file_is_a_mismatch(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GoldenMismatch, match=r"golden\.npz: cannot be read"):
        golden.check(digits_pipeline(tmp_path), path, atol=1)


def test_a_file_without_answers_is_a_mismatch(tmp_path: Path) -> None:
    golden.write(tmp_path / "golden.npz", {"image": images(1)}, {})
    with pytest.raises(GoldenMismatch, match="holds no known answers"):
        golden.read(tmp_path / "golden.npz")


def test_equal_answers_give_equal_bytes(known: Path, tmp_path: Path) -> None:
    inputs, outputs = golden.read(known)
    golden.write(tmp_path / "again.npz", inputs, outputs)
    assert (tmp_path / "again.npz").read_bytes() == known.read_bytes()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    np.savez(path, **{"input:x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(GoldenMismatch, match="cannot be read"):
        golden.read(path)
