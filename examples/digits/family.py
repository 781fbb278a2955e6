"""A family of small convolutional networks: the same task at different cost."""

from __future__ import annotations

from torch import nn


def build(channels: int, hidden: int) -> nn.Module:
    """An untrained network from images FP32 [n, 1, 8, 8] in 0..1 to logits FP32 [n, 10].

    Args:
        channels: of the first convolution; the second has twice as many.
        hidden: width of the layer before the logits.
    """
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
