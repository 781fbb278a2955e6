"""Derived members: pruned and distilled networks, what is planned, what is refused, checkpoints."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.wire.manifest import StepSpec
from optimizer.derive import (
    Choice,
    DeriveConfig,
    DeriveContext,
    Derived,
    Sized,
    derivation,
    derivations,
    find,
    planned,
)
from optimizer.derive.prune import Prune, remove_channels
from optimizer.derive.rebuilt import describe, rebuild
from optimizer.errors import DeriveFailed, TrainingFailed
from optimizer.family import TrainingSpec
from optimizer.fine_tuning import ArrayTrainer, LabelledRows, Training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

if TYPE_CHECKING:
    from tests.optimizer.conftest import Digits

SPEC = TrainingSpec(epochs=6, batch_size=32, learning_rate=6e-3, seed=5)
IMAGE = {"x": np.random.default_rng(3).uniform(0, 1, (4, 1, 8, 8)).astype(np.float32)}


class Residual(nn.Module):
    """Stem, a residual block with normalisation, a depthwise convolution, a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, stride=2)
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.last = nn.Linear(width * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))
        return self.last(torch.relu(self.depthwise(x)).flatten(1))


class Sequence_(nn.Module):  # noqa: N801
    """A recurrent network, which cannot be taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(x[:, 0])[0][:, -1])


def rows(part: Digits) -> LabelledRows:
    return LabelledRows({"x": (part.images / 16)[:, None]}, part.labels)


@pytest.fixture(scope="module")
def trainer(digits: Digits) -> ArrayTrainer:
    """Two trained members; `sequence` is not trained at all."""
    train = rows(digits.part(0, 700))
    trained: dict[str, dict[str, torch.Tensor]] = {}
    for name, width in (("small", 4), ("large", 16)):
        torch.manual_seed(5)
        module = Residual(width)
        Training(module, train, SPEC).run(SPEC.epochs)
        trained[name] = module.state_dict()

    def load(member: str) -> nn.Module:
        if member == "sequence":
            return Sequence_()
        module = Residual(4 if member == "small" else 16)
        module.load_state_dict(trained[member])
        return module

    return ArrayTrainer(
        load=load,
        train=train,
        judged=rows(digits.part(1200, 1600)),
        spec=SPEC,
        labels=tuple("0123456789"),
        outputs=("logits",),
    )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_half_the_channels_go_and_fine_tuning_brings_the_accuracy_back(
    trainer: ArrayTrainer,
) -> None:
    whole = trainer.module("large")
    cut = trainer.module("large")
    remove_channels(cut, trainer.example, Prune(share=0.5))
    derived = find("prune", {"share": 0.5}).apply(DeriveContext(trainer, "large", "large"))
    assert derived.module.stem.out_channels == derived.module.depthwise.groups == 8
    assert parameters(derived.module) < 0.55 * parameters(whole)
    before, after = trainer.accuracy(cut).accuracy, trainer.accuracy(derived.module).accuracy
    assert after > before + 0.1
    assert after > trainer.accuracy(whole).accuracy - 0.03
    (note,) = derived.notes
    assert "derived from large: 50% of the channels pruned by magnitude" in note
    assert "trained for 3 epochs" in note


def test_channels_are_ranked_by_normalisation_rounded_and_kept_as_told() -> None:
    torch.manual_seed(5)
    module = Residual(16)
    with torch.no_grad():
        module.norm.weight.copy_(torch.linspace(0.1, 1.0, 16))
    config = Prune(share=0.3, by="bn-scale", round_to=8, keep=("two",))
    remove_channels(module, IMAGE, config)
    assert module.two.out_channels == 16  # the residual sum and with it the stem stay whole
    assert module.stem.out_channels == 16
    assert module.norm.num_features == 8
    assert float(module.norm.weight.detach().min()) > 0.5


def test_a_small_member_learns_from_the_large_one(trainer: ArrayTrainer) -> None:
    derived = find("distil", {"epochs": 4}).apply(DeriveContext(trainer, "small", "large"))
    small = trainer.module("small")
    assert parameters(derived.module) == parameters(small)
    assert trainer.accuracy(derived.module).accuracy >= trainer.accuracy(small).accuracy
    assert derived.notes[0].startswith("derived from small: distilled from large for 4 epochs")


def test_a_network_that_cannot_be_pruned_is_one_line(trainer: ArrayTrainer) -> None:
    with pytest.raises(DeriveFailed) as caught:
        find("prune").apply(DeriveContext(trainer, "sequence", "sequence"))
    assert str(caught.value) == "the recurrent layer 'lstm' cannot be pruned"


class Fixed(nn.Module):
    """Its reshape knows the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.last = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(x).reshape(-1, 512))


class Embedding(nn.Module):
    """Answers with its features too."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(64, 32)
        self.last = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.features(x.flatten(1)))
        return self.last(features), features


@pytest.mark.parametrize(
    ("module", "config", "complaint"),
    [
        (Fixed(), Prune(), "the network cannot be pruned: mat1"),
        (Embedding(), Prune(), "change the shape of what the network answers; see keep"),
        (Embedding(), Prune(keep=("features",)), "no channel of the network can be taken out"),
        (Embedding(), Prune(keep=("feature",)), "keep: the network has no layer 'feature'"),
        (Embedding(), Prune(by="bn-scale"), "no batch normalisation to rank channels by"),
        (nn.Flatten(), Prune(), "no Conv or Linear was run"),
    ],
)
def test_what_pruning_refuses(module: nn.Module, config: Prune, complaint: str) -> None:
    with pytest.raises(DeriveFailed, match=complaint) as caught:
        remove_channels(module, IMAGE, config)
    assert "\n" not in str(caught.value)


def test_a_pruned_network_survives_its_checkpoint() -> None:
    torch.manual_seed(5)
    module = Residual(16)
    remove_channels(module, IMAGE, Prune(share=0.5))
    file = io.BytesIO()
    torch.save(describe(Residual(16), module), file)
    file.seek(0)
    back = rebuild(Residual(16), torch.load(file, weights_only=True))
    assert back.depthwise.groups == 8
    x = torch.from_numpy(IMAGE["x"])
    assert torch.equal(back(x), module.eval()(x))


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    with pytest.raises(TrainingFailed, match="a layer 'stem' that the network has not"):
        rebuild(Embedding(), describe(Residual(4), Residual(4)))


def test_a_retrained_member_keeps_the_shape_it_had(trainer: ArrayTrainer) -> None:
    earlier = trainer.module("large")
    remove_channels(earlier, trainer.example, Prune(share=0.25))
    count = parameters(earlier)
    context = DeriveContext(trainer, "large", "large", earlier)
    derived = find("prune", {"share": 0.5, "epochs": 1}).apply(context)
    assert parameters(derived.module) == count
    assert "pruned as in the parent version" in derived.notes[0]


MEMBERS = (Sized("small", 10), Sized("large", 90), Sized("middle", 50))


def step(name: str, **config: object) -> StepSpec:
    return StepSpec.model_validate({"name": name, "config": config})


def test_the_largest_is_pruned_and_teaches_the_others() -> None:
    wanted, notes = planned([step("distil"), step("prune", share=0.25)], MEMBERS)
    assert [(one.name, one.parent, one.teacher) for one in wanted] == [
        ("small-distilled", "small", "large"),
        ("middle-distilled", "middle", "large"),
        ("large-pruned25", "large", "large"),
    ]
    assert notes == ()


def test_members_are_derived_from_as_named() -> None:
    wanted, _ = planned(
        [step("distil", members=["small"]), step("prune", members=["small", "middle"])], MEMBERS
    )
    assert [one.name for one in wanted] == ["small-distilled", "small-pruned50", "middle-pruned50"]


@pytest.mark.parametrize(
    ("specs", "members", "note"),
    [
        ([step("distil")], MEMBERS[:1], "distil: no member is smaller than 'small', which teaches"),
        ([step("prune", members=["gone"])], MEMBERS, "prune: none of gone is left to be pruned"),
        ([step("prune"), step("prune")], MEMBERS, "there is a member 'large-pruned50' already"),
    ],
)
def test_a_spec_that_makes_nothing_is_a_line_and_the_others_go_on(
    specs: Sequence[StepSpec], members: Sequence[Sized], note: str
) -> None:
    wanted, notes = planned([*specs, step("prune", share=0.75)], members)
    assert wanted[-1].name.endswith("-pruned75")
    assert len(notes) == 1 and note in notes[0]


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        ("prun", {}, "unknown derivation 'prun'; did you mean 'prune'?"),
        ("prune", {"share": 1.5}, "derivation 'prune': share: Input should be less than or equal"),
        ("distil", {"temprature": 2}, "derivation 'distil': temprature: Extra inputs"),
    ],
)
def test_a_derivation_that_is_not_there_or_told_nonsense_is_refused(
    name: str, config: dict[str, float], complaint: str
) -> None:
    with pytest.raises(DeriveFailed) as caught:
        find(name, config)
    assert complaint in str(caught.value)


def test_users_register_their_own(trainer: ArrayTrainer) -> None:
    class Copy(DeriveConfig):
        @property
        def suffix(self) -> str:
            return "copied"

        def choices(self, members: Sequence[Sized]) -> Sequence[Choice]:
            return [Choice(members[0].name, "")]

    @derivation("test-copy", config=Copy)
    def copy(context: DeriveContext, config: Copy) -> Derived:
        return Derived(context.trainer.module(context.parent), (f"{context.epochs(config)}",))

    assert "test-copy" in derivations()
    assert planned([step("test-copy")], MEMBERS)[0][0].name == "small-copied"
    assert find("test-copy").apply(DeriveContext(trainer, "small", "")).notes == ("3",)
