"""The training loop: stopping and going on, teachers, what it refuses; the trainer over arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from optimizer.errors import TrainingFailed
from optimizer.family import Distillation, TrainingSpec
from optimizer.fine_tuning import (
    ArrayTrainer,
    LabelledRows,
    Training,
    load_weights,
    predict,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

if TYPE_CHECKING:
    from tests.optimizer.conftest import Digits

SPEC = TrainingSpec(epochs=4, batch_size=16, learning_rate=4e-3, seed=5)


@pytest.fixture(scope="module")
def train(digits: Digits) -> LabelledRows:
    part = digits.part(0, 600)
    return LabelledRows({"x": (part.images / 16)[:, None]}, part.labels)


@pytest.fixture(scope="module")
def judged(digits: Digits) -> LabelledRows:
    part = digits.part(1200, 1500)
    return LabelledRows({"x": (part.images / 16)[:, None]}, part.labels)


def network(hidden: int = 24, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10)
    )


def trainer(train: LabelledRows, judged: LabelledRows) -> ArrayTrainer:
    def load(member: str) -> nn.Module:
        if member != "only":
            raise TrainingFailed(f"no member {member!r}")
        return network()

    return ArrayTrainer(
        load=load,
        train=train,
        judged=judged,
        spec=SPEC,
        labels=tuple("0123456789"),
        outputs=("logits",),
    )


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, train: LabelledRows
) -> None:
    whole = network()
    Training(whole, train, SPEC).run(4)

    first = Training(network(), train, SPEC)
    first.run(2)
    torch.save(first.state(), tmp_path / "state.pt")
    torch.manual_seed(99)
    halved = network(seed=99)
    second = Training(halved, train, SPEC)
    second.resume(torch.load(tmp_path / "state.pt", weights_only=True))
    second.run(4)

    for one, other in zip(whole.parameters(), halved.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_teacher_that_counts_for_everything_is_followed_where_the_labels_are_nonsense(
    train: LabelledRows, judged: LabelledRows
) -> None:
    teacher = network(hidden=48)
    Training(teacher, train, SPEC.model_copy(update={"epochs": 8})).run(8)
    nonsense = replace(train, labels=(train.labels + 3) % 10)
    taught = network()
    Training(taught, nonsense, SPEC, teacher=teacher, distillation=Distillation(weight=1.0)).run(4)
    untaught = network()
    Training(untaught, nonsense, SPEC).run(4)

    def right(module: nn.Module) -> float:
        return float(np.mean(predict(module, judged.tensors).argmax(axis=1) == judged.labels))

    assert right(taught) > 0.7
    assert right(untaught) < 0.2


def test_rows_without_weight_are_not_learnt_from(train: LabelledRows, judged: LabelledRows) -> None:
    known = np.where(train.labels < 5, 1.0, 0.0)
    module = network()
    Training(module, replace(train, weight=known), SPEC).run(4)
    assert set(predict(module, judged.tensors).argmax(axis=1)) <= set(range(5))


def test_a_training_that_diverges_says_what_to_change(train: LabelledRows) -> None:
    heavy = replace(train, weight=np.full(len(train), 1e38))
    with pytest.raises(TrainingFailed, match=r"the loss is .*; lower training\.learning_rate"):
        Training(network(), heavy, SPEC.model_copy(update={"learning_rate": 10.0})).run(4)


def test_the_trainer_trains_judges_and_exports(
    tmp_path: Path, train: LabelledRows, judged: LabelledRows
) -> None:
    ours = trainer(train, judged)
    module = ours.module("only")
    before = ours.accuracy(module).accuracy
    ours.fit(module, epochs=4)
    assert not module.training
    accuracy = ours.accuracy(module)
    assert accuracy.accuracy > before + 0.5
    assert set(accuracy.recall) == set("0123456789")
    interface = ours.export(module, tmp_path / "model.onnx")
    assert [spec.name for spec in interface.inputs] == ["x"]
    assert [spec.name for spec in interface.outputs] == ["logits"]
    assert onnx.load(str(tmp_path / "model.onnx")).graph.node


def test_the_fingerprint_tells_rows_and_settings_apart(
    train: LabelledRows, judged: LabelledRows
) -> None:
    ours = trainer(train, judged)
    assert ours.fingerprint == trainer(train, judged).fingerprint
    relabelled = replace(train, labels=(train.labels + 1) % 10)
    assert ours.fingerprint != trainer(relabelled, judged).fingerprint


def test_weights_of_another_network_are_one_line() -> None:
    with pytest.raises(TrainingFailed) as caught:
        load_weights(network(24), network(48).state_dict())
    assert str(caught.value) == "the checkpoint does not fit the network that was built"


def test_a_network_that_answers_no_tensor_is_refused(train: LabelledRows) -> None:
    class Dictionary(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x}

    with pytest.raises(TrainingFailed, match="returns dict, not a tensor of logits"):
        predict(Dictionary(), train.tensors)
