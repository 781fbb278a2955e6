"""Quantisation-aware training: the network learns with the rounding that int8 will do to it.

Inputs and weights of every Conv and Linear pass through fake quantisation while it is trained for a
few more epochs; gradients go straight through the rounding.  What has been learnt is exported in
fp32 and quantised as `ort-int8` does it, with ranges calibrated afresh.

Rules:
    * Weights are rounded on the grid that the file will have: symmetric, by channel or by tensor,
      7 bits where `ort-int8` reduces the range.
    * Batch normalisation keeps its statistics.  Folding it into a convolution scales whole
      channels, which leaves a grid by channel as it is.
    * The network as it was before teaches it, beside the labels.
    * It trains, so it is tried only where a project names it.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; the gradient: Bengio, Léonard, Courville, "Estimating
or Propagating Gradients Through Stochastic Neurons", 2013.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol

from pydantic import Field

from optimizer.errors import ExportFailed, RecipeFailed, TrainingFailed
from optimizer.family import Distillation
from optimizer.passes.context import Artifact, PassContext
from optimizer.passes.ort import QDQ_RUNTIMES, OrtInt8, ort_int8
from optimizer.passes.qdq import Scheme
from optimizer.passes.registry import recipe
from optimizer.saturation import saturates

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("skerry.optimizer")

_SMALLEST_SCALE: Final = 1e-12
_FORGET: Final = 0.99
"""Part of an activation's extremes that a batch with smaller ones leaves."""


class QatInt8(OrtInt8):
    """Config of `qat-int8`: that of `ort-int8`, and how it is trained.

    Attributes:
        epochs: of training with fake quantisation; a quarter of the project's where `None`.
        rate: factor of the project's learning rate.
    """

    epochs: int | None = Field(default=None, ge=1, le=10_000)
    rate: Annotated[float, Field(gt=0, le=10)] = 0.2


@recipe("qat-int8", runtimes=QDQ_RUNTIMES, precision="int8", config=QatInt8, trains=True)
def qat_int8(context: PassContext, config: QatInt8) -> Artifact:
    """Static int8 of a network that was trained for it."""
    trainer = context.trainer
    if trainer is None:
        raise RecipeFailed(
            "needs the network's checkpoint and its training rows, and here is only its ONNX file"
        )
    epochs = config.epochs or max(1, trainer.spec.epochs // 4)
    try:
        module = trainer.module(context.member)
        reduced = config.reduce_range
        if reduced is None:
            reduced = config.weights != "u8" and saturates(context.profile)
        limit = replace(Scheme.for_profile(context.profile), reduce_range=reduced).weight_limit
        count = train_quantised(
            module,
            lambda rounded: trainer.fit(
                rounded,
                epochs=epochs,
                rate=config.rate,
                teacher=trainer.module(context.member),
                distillation=Distillation(temperature=2.0, weight=0.5),
            ),
            limit,
            per_channel=config.per_channel,
        )
        with tempfile.TemporaryDirectory(prefix="skerry-qat-") as scratch:
            source = Path(scratch) / "tuned.onnx"
            trainer.export(module, source)
            artifact = ort_int8(replace(context, source=source), config)
    except (TrainingFailed, ExportFailed) as error:
        raise RecipeFailed(str(error)) from error
    log.info("pass.qat_int8 member=%s epochs=%d layers=%d", context.member, epochs, count)
    note = f"trained for {epochs} epochs with int8 rounding in {count} layers"
    return replace(artifact, notes=(note, *artifact.notes))


class Fit(Protocol):
    """Trains a network in place."""

    def __call__(self, module: nn.Module, /) -> None: ...


def train_quantised(
    module: nn.Module, fit: Fit, weight_limit: int, *, per_channel: bool = True
) -> int:
    """Train `module` with fake quantisation, and leave it without.

    Args:
        weight_limit: largest magnitude of a quantised weight: 127, or 64 with a reduced range.

    Returns:
        How many layers were quantised.

    Raises:
        RecipeFailed: there is no Conv or Linear.
    """
    import torch
    from torch.nn.utils import parametrize

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    layers = [layer for layer in module.modules() if isinstance(layer, kinds)]
    if not layers:
        raise RecipeFailed("the network has no Conv or Linear to quantise")
    hooks = []
    for layer in layers:
        axis = 1 if getattr(layer, "transposed", False) else 0
        rounding = _rounding_of_weights(axis if per_channel else None, weight_limit)
        parametrize.register_parametrization(layer, "weight", rounding)
        hooks.append(layer.register_forward_pre_hook(_RoundedInput()))
    try:
        fit(_without_new_statistics(module))
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    module.eval()
    return len(layers)


@dataclass
class _RoundedInput:
    """Rounds what a layer takes to 8 bits over the range seen so far."""

    low: float = 0.0
    high: float = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> object:
        first = inputs[0]
        if layer.training:
            self.low = min(float(first.detach().min()), self.low * _FORGET)
            self.high = max(float(first.detach().max()), self.high * _FORGET)
        scale = max((self.high - self.low) / 255, _SMALLEST_SCALE)
        zero = round(-self.low / scale)
        steps = (first / scale + zero).clamp(0, 255)
        return ((_rounded(steps) - zero) * scale, *inputs[1:])


def _rounding_of_weights(axis: int | None, limit: int) -> nn.Module:
    """A parametrisation that rounds a weight on a symmetric grid, one for each index of `axis`."""
    import torch

    class RoundedWeight(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            others = [other for other in range(weight.dim()) if other != axis]
            largest = weight.detach().abs().amax(dim=others, keepdim=True)
            scale = (largest / limit).clamp(min=_SMALLEST_SCALE)
            return _rounded(weight / scale) * scale

    return RoundedWeight()


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """`values` rounded; the gradient is that of `values` themselves."""
    return values + (values.round() - values).detach()


def _without_new_statistics(module: nn.Module) -> nn.Module:
    """`module` as one whose batch normalisations keep their statistics while it is trained."""
    import torch

    class Frozen(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: torch.Tensor) -> object:
            return self.inner(*inputs)

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            for layer in self.inner.modules():
                if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                    layer.eval()
            return self

    return Frozen()
