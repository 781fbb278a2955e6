"""Training members of the digits family: accuracy, determinism, warm starts, divergence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cloud import datasets
from cloud.jobs.errors import StepFailed
from cloud.jobs.executors import LocalProcess
from cloud.project import load_project
from cloud.training.arrays import Rows
from cloud.training.load import as_rows
from cloud.training.prepare import network_inputs

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Rows:
    """The example's data, split as a build splits it."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    project = load_project(DIGITS)
    rows = as_rows(
        ({"image": digits.images.astype(np.float32)}, [str(label) for label in digits.target]),
        project,
    )
    spec = project.dataset
    split = datasets.assign_splits(
        datasets.row_digests(rows.inputs),
        golden_share=spec.golden_share,
        eval_share=spec.eval_share,
        seed=spec.seed,
    )
    return Rows(rows.inputs, rows.labels, np.array(split), np.ones(len(rows)))


class Desk:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project_dir = directory / "project"
        self.project_dir.mkdir(parents=True)
        for name in ("skerry.yaml", "data.py", "family.py", "steps.py"):
            shutil.copy(DIGITS / name, self.project_dir / name)
        self.reports: list[str] = []

    def fit(self, data: Rows, member: str, warm_start: Path | None = None) -> dict[str, object]:
        data.save(self.directory / "rows.npz")
        return dict(
            LocalProcess(self.directory / "lock").run(
                "fit",
                {
                    "project_dir": str(self.project_dir),
                    "member": member,
                    "data": str(self.directory / "rows.npz"),
                    "warm_start": None if warm_start is None else str(warm_start),
                },
                self.directory,
                self.directory / "log",
                progress=lambda _, text, left_s=None: self.reports.append(text),
                cancelled=lambda: False,
            )
        )

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Of the checkpoint on raw images."""
        import torch

        from cloud.training.networks import build_member
        from optimizer.fine_tuning import predict

        project = load_project(self.project_dir)
        module = build_member(project, self.project_dir, "small")
        module.load_state_dict(torch.load(self.directory / "checkpoint.pt", weights_only=True))
        inputs, _ = network_inputs(project, self.project_dir, Rows({"image": images}, labels))
        return float((predict(module, inputs).argmax(axis=1) == labels).mean())


def turned(images: np.ndarray) -> np.ndarray:
    rotated = ndimage.rotate(images, 30, axes=(2, 1), reshape=False, order=1)
    return np.clip(rotated, 0, 16).astype(np.float32)


@pytest.mark.parametrize("member", ["small", "large"])
def test_members_learn_clean_digits(tmp_path: Path, data: Rows, member: str) -> None:
    desk = Desk(tmp_path / "desk")
    metrics = desk.fit(data, member)["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["macro_f1"] >= 0.95
    assert set(metrics["recall"]) == set("0123456789")
    assert any("epoch" in text for text in desk.reports)


def test_training_twice_gives_the_same_weights(tmp_path: Path, data: Rows) -> None:
    weights = []
    for name in ("one", "two"):
        desk = Desk(tmp_path / name)
        desk.fit(data, "small")
        weights.append((desk.directory / "checkpoint.pt").read_bytes())
    assert weights[0] == weights[1]


def test_rotation_hurts_and_a_few_hundred_labels_mend_it(tmp_path: Path, data: Rows) -> None:
    desk = Desk(tmp_path / "desk")
    desk.fit(data, "small")
    held = data.part("eval", "golden")
    clean = desk.accuracy(held.inputs["image"], held.labels)
    rotated = desk.accuracy(turned(held.inputs["image"]), held.labels)
    assert clean > 0.95
    assert rotated < clean - 0.2

    field = data.part("train").take(np.arange(300))
    more = Rows(
        {"image": np.concatenate([data.inputs["image"], turned(field.inputs["image"])])},
        np.concatenate([data.labels, field.labels]),
        np.concatenate([data.split, field.split]),
        np.concatenate([data.weight, field.weight]),
    )
    parent = (desk.directory / "checkpoint.pt").rename(desk.directory / "parent.pt")
    answer = desk.fit(more, "small", warm_start=parent)
    assert answer["warm_start"] is True
    assert desk.accuracy(turned(held.inputs["image"]), held.labels) > rotated + 0.15
    assert desk.accuracy(held.inputs["image"], held.labels) > clean - 0.02


def test_a_diverging_training_says_what_to_change(tmp_path: Path, data: Rows) -> None:
    desk = Desk(tmp_path / "desk")
    path = desk.project_dir / "skerry.yaml"
    path.write_text(path.read_text().replace("learning_rate: 4.0e-3", "learning_rate: 10.0"))
    images = {"image": data.inputs["image"] * np.float32(1)}
    with pytest.raises(StepFailed, match="the loss is"):
        desk.fit(Rows(images, data.labels, data.split, data.weight * 1e38), "small")


def test_a_parent_of_another_architecture_is_not_taken_over(tmp_path: Path, data: Rows) -> None:
    desk = Desk(tmp_path / "desk")
    desk.fit(data, "small")
    parent = (desk.directory / "checkpoint.pt").rename(desk.directory / "parent.pt")
    assert desk.fit(data, "large", warm_start=parent)["warm_start"] is False
