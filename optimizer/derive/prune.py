"""Structured pruning: whole channels are taken out, so the network is smaller for every runtime.

Channels that depend on each other (across residual sums, concatenations, normalisations, depthwise
convolutions, attention) go together; torch-pruning finds out which by running the network once.

Rules:
    * The shape of what the network answers never changes.
    * A network that loses nothing, or cannot be taken apart, is refused in one line.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023; scales of batch
normalisation as importance: Liu et al., "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from optimizer.derive.registry import (
    Choice,
    DeriveConfig,
    DeriveContext,
    Derived,
    Sized,
    derivation,
)
from optimizer.errors import DeriveFailed
from optimizer.family import Distillation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edge_agent.runtime import Tensors

_OWN_ANSWERS: Final = Distillation(temperature=2.0, weight=0.5)
"""The unpruned network teaches the pruned one."""


class Prune(DeriveConfig):
    """Config of `prune`.

    Attributes:
        share: of each layer's channels that are taken out.
        by: what a channel is worth: the magnitude of all weights that belong to it, or the scale
            of its batch normalisation.
        round_to: channels left are a multiple of this, where a layer has so many.
        keep: layers, by their name in the network, whose channels all stay.
    """

    share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    by: Literal["magnitude", "bn-scale"] = "magnitude"
    round_to: Annotated[int, Field(ge=1, le=64)] = 1
    keep: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        return f"pruned{round(100 * self.share)}"

    def choices(self, members: Sequence[Sized]) -> Sequence[Choice]:
        """The largest member, or those that are named; each is its own teacher."""
        parents = self.chosen(members)
        if not self.members:
            parents = [max(members, key=lambda one: one.parameters)]
        if not parents:
            raise DeriveFailed(f"prune: none of {', '.join(self.members)} is left to be pruned")
        return [Choice(one.name, one.name) for one in parents]


@derivation("prune", config=Prune)
def prune(context: DeriveContext, config: Prune) -> Derived:
    """The parent with fewer channels, trained on with the parent as its teacher."""
    trainer, epochs = context.trainer, context.epochs(config)
    teacher = trainer.module(context.parent)
    whole = _parameters(teacher)
    if context.earlier is not None:
        module, done = context.earlier, "pruned as in the parent version"
    else:
        module = trainer.module(context.parent)
        remove_channels(module, trainer.example, config)
        done = f"{config.share:.0%} of the channels pruned by {config.by}"
    left = _parameters(module) / whole
    trainer.fit(module, epochs=epochs, rate=config.rate, teacher=teacher, distillation=_OWN_ANSWERS)
    return Derived(
        module,
        (
            f"derived from {context.parent}: {done}, {left:.0%} of the weights left, "
            f"then trained for {epochs} epochs",
        ),
    )


def remove_channels(module: nn.Module, example: Tensors, config: Prune) -> None:
    """Take channels out of `module`, in place.

    Args:
        example: a few rows of the network's inputs, in the order of its arguments.

    Raises:
        DeriveFailed: torch-pruning is not installed, or the network cannot be pruned.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise DeriveFailed("torch-pruning is not installed here; it comes with skerry[train]")
    import torch
    import torch_pruning

    module.eval()
    inputs = tuple(torch.from_numpy(array.copy()) for array in example.values())
    shapes, layers = _watched(module, inputs)
    if not layers:
        raise DeriveFailed("the network has no layer to prune: no Conv or Linear was run")
    named = dict(module.named_modules())
    recurrent = [name for name, one in named.items() if isinstance(one, torch.nn.RNNBase)]
    if recurrent:
        raise DeriveFailed(f"the recurrent layer '{recurrent[0]}' cannot be pruned")
    unknown = [name for name in config.keep if name not in named]
    if unknown:
        raise DeriveFailed(f"keep: the network has no layer '{unknown[0]}'")
    before = _parameters(module)
    if config.by == "bn-scale" and not any(_is_norm(layer) for layer in named.values()):
        raise DeriveFailed("the network has no batch normalisation to rank channels by")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about parameters outside of layers, which stay whole
        try:
            torch_pruning.pruner.BasePruner(
                module,
                inputs,
                importance=lambda group: _importance(group, config.by),
                pruning_ratio=config.share,
                ignored_layers=[layers[-1], *(named[name] for name in config.keep)],
                round_to=config.round_to if config.round_to > 1 else None,
            ).step()
            now, _ = _watched(module, inputs)
        except Exception as error:  # its assertions have no text; a network's reshape has its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise DeriveFailed(
                f"the network cannot be pruned{': ' if reason else ''}{reason}"
            ) from error
    if now != shapes:
        raise DeriveFailed("pruning would change the shape of what the network answers; see keep")
    if _parameters(module) >= before:
        raise DeriveFailed("no channel of the network can be taken out")


def _importance(group: Any, by: Literal["magnitude", "bn-scale"]) -> torch.Tensor | None:
    """What each channel of a group of layers that depend on each other is worth, FP32 [channels].

    The squares of all weights that make a channel or read it, or of its scales, each layer's by
    their mean so that a large layer does not outvote a small one.  `None`, and so nothing is taken
    out, where the group has nothing to go by.

    torch-pruning's own measures take the number of channels from the first layer that they look at,
    which is wrong where a flattened image is read.
    """
    import torch
    from torch_pruning import function

    writes = (
        function.prune_conv_out_channels,
        function.prune_depthwise_conv_out_channels,
        function.prune_linear_out_channels,
    )
    reads = (function.prune_conv_in_channels, function.prune_linear_in_channels)
    worth = torch.zeros(len(group[0].idxs))
    counted = False
    for item in group:
        layer, what = item.dep.layer, item.dep.pruning_fn
        if by == "bn-scale":
            values = layer.weight.detach().square() if _is_norm(layer) and layer.affine else None
        elif what in writes or what in reads:
            axis = int((what in reads) != bool(getattr(layer, "transposed", False)))
            values = layer.weight.detach().transpose(0, axis).flatten(1).square().sum(1)
            if what in reads and getattr(layer, "groups", 1) > 1:
                values = values.repeat(layer.groups)
        else:
            values = None
        if values is None or any(index is None for index in item.root_idxs):
            continue
        values = values[torch.tensor(item.idxs)]
        worth.scatter_add_(0, torch.tensor(item.root_idxs), values / values.mean().clamp(min=1e-12))
        counted = True
    return worth if counted else None


def _is_norm(layer: nn.Module) -> bool:
    import torch

    return isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)


def _watched(
    module: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[tuple[int, ...]], list[nn.Module]]:
    """Shapes of what the network answers, and its layers with weights in the order they ran."""
    import torch

    ran: list[nn.Module] = []

    def note(layer: nn.Module, _inputs: object, _output: object) -> None:
        ran.append(layer)

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    hooks = [
        layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, kinds)
    ]
    try:
        with torch.no_grad():
            answer = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    return [tuple(one.shape) for one in answers], ran


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
