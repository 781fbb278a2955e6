"""Quantisation-aware training on digits, where plain quantisation has a hard time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.runtime import open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.errors import RecipeFailed, TrainingFailed
from optimizer.family import TrainingSpec
from optimizer.fine_tuning import ArrayTrainer, LabelledRows, Training
from optimizer.passes import Artifact, PassContext, find, recipes
from optimizer.passes.qat import train_quantised
from optimizer.profiles import load_profile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

if TYPE_CHECKING:
    from tests.optimizer.conftest import Digits

SPEC = TrainingSpec(epochs=8, batch_size=32, learning_rate=6e-3, seed=5)
CHANNELS = 8


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(CHANNELS * 16, 10),
    )


def unbalanced(module: nn.Module) -> nn.Module:
    """The same function, but half of the channels between the convolutions are 300 times as large.

    An activation has one scale for all of its channels, so the small ones lose everything.
    """
    factors = torch.where(torch.arange(CHANNELS) < CHANNELS // 2, 1.0, 300.0)
    with torch.no_grad():
        module[1].weight.mul_(factors)
        module[1].bias.mul_(factors)
        module[3].weight.div_(factors[:, None, None])
    return module


def rows(part: Digits) -> LabelledRows:
    return LabelledRows({"x": (part.images / 16)[:, None]}, part.labels)


@pytest.fixture(scope="module")
def trainer(digits: Digits) -> ArrayTrainer:
    train = rows(digits.part(0, 800))
    module = network()
    Training(module, train, SPEC).run(SPEC.epochs)
    trained = module.state_dict()

    def load(member: str) -> nn.Module:
        if member != "only":
            raise TrainingFailed(f"there is no checkpoint of member '{member}'")
        module = network()
        module.load_state_dict(trained)
        return unbalanced(module)

    return ArrayTrainer(
        load=load,
        train=train,
        judged=rows(digits.part(1200, 1700)),
        spec=SPEC,
        labels=tuple("0123456789"),
        outputs=("logits",),
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, trainer: ArrayTrainer) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.onnx"
    trainer.export(trainer.module("only"), path)
    return path


@pytest.fixture
def context(tmp_path: Path, source: Path, trainer: ArrayTrainer, digits: Digits) -> PassContext:
    """For a profile without VNNI, on which weights have 7 bits."""
    return PassContext(
        source,
        rows(digits.part(0, 200)).tensors,
        tmp_path / "made",
        load_profile("generic-x86-64"),
        member="only",
        trainer=trainer,
    )


def made(context: PassContext, name: str, **config: float) -> tuple[Artifact, Path]:
    """What a recipe makes, in a directory of its own."""
    place = context.directory.parent
    directory = place / f"made-{len(list(place.iterdir()))}"
    directory.mkdir()
    return find(name, config).apply(replace(context, directory=directory)), directory


def right(directory: Path, part: Digits) -> float:
    """Accuracy of `model.onnx` in ONNX Runtime."""
    spec = ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=(), outputs=())
    session = open_session(directory / "model.onnx", spec)
    logits = session.run({"x": (part.images / 16)[:, None]})["logits"]
    session.close()
    return float(np.mean(logits.argmax(axis=1) == part.labels))


def test_training_with_rounding_recovers_what_plain_quantisation_loses(
    context: PassContext, trainer: ArrayTrainer, digits: Digits
) -> None:
    judged = digits.part(1200, 1700)
    whole = trainer.accuracy(trainer.module("only")).accuracy
    _, plain = made(context, "ort-int8", reduce_range=True)
    artifact, aware = made(context, "qat-int8", reduce_range=True, epochs=4, rate=0.5)
    assert right(plain, judged) < whole - 0.3, "the case is not hard"
    assert right(aware, judged) > whole - 0.1
    assert artifact.precision == "int8"
    assert artifact.notes[0] == "trained for 4 epochs with int8 rounding in 3 layers"


def test_training_twice_gives_the_same_file(context: PassContext) -> None:
    files = [made(context, "qat-int8", epochs=1)[1] / "model.onnx" for _ in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_lie_on_their_grid_while_training_and_statistics_stay(
    trainer: ArrayTrainer,
) -> None:
    module = trainer.module("only")
    before = module[1].running_mean.clone()
    seen: list[torch.Tensor] = []

    def fit(rounded: nn.Module) -> None:
        rounded.train()
        rounded(torch.from_numpy(trainer.example["x"]))
        seen.append(module[3].weight.detach().clone())

    assert train_quantised(module, fit, 64) == 3
    for channel in seen[0]:
        steps = channel / channel.abs().max() * 64
        assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert torch.equal(module[1].running_mean, before)
    assert not torch.equal(module[3].weight, seen[0])  # what was learnt, not what was rounded
    assert isinstance(module[3].weight, nn.Parameter)


def test_without_a_trainer_it_says_what_it_needs(context: PassContext) -> None:
    with pytest.raises(RecipeFailed) as caught:
        made(replace(context, trainer=None), "qat-int8")
    assert str(caught.value) == (
        "needs the network's checkpoint and its training rows, and here is only its ONNX file"
    )


def test_a_member_without_a_checkpoint_is_one_line(context: PassContext) -> None:
    with pytest.raises(RecipeFailed, match="there is no checkpoint of member 'gone'"):
        made(replace(context, member="gone"), "qat-int8")


def test_it_is_tried_only_where_it_is_named() -> None:
    assert "qat-int8" not in recipes()
    assert find("qat-int8").trains
    assert not find("ort-int8").trains
