"""Three networks, trained on this machine, then trained further on data they have not seen.

digits       the example's CNN, 150k parameters, on 8×8 digits; new data: digits turned by 25°
resnet       ResNet-18, 11M parameters, on the same digits at 32×32 in three channels
transformer  a byte-level language model, 3M parameters, on the standard library; new data: packages
             of it that the first training has not seen

Fine-tuning is the usual kind for each: the first training's optimiser at a tenth of its rate or
less, a few passes.  How far weights move decides what a delta costs, so both the error before and
after on new data and the share of changed weights are reported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import nn

from edge_agent.wire.manifest import Datatype
from examples.digits.family import build as build_digits

CONTEXT: Final = 64
"""Bytes that the language model sees."""

TURNED_DEGREES: Final = 25
TRAIN_SHARE: Final = 0.8

_FIRST_TEXT: Final = "*.py"
_NEW_TEXT: Final = ("asyncio/*.py", "email/*.py", "http/*.py")


@dataclass(frozen=True)
class Data:
    """Rows to train on, and others to judge by: inputs [n, ...], labels INT64 [n, ...]."""

    x: NDArray[np.generic]
    y: NDArray[np.int64]
    judged_x: NDArray[np.generic]
    judged_y: NDArray[np.int64]


@dataclass(frozen=True)
class Effort:
    """One training: passes over the data, rows in a batch, learning rate, at most so many steps."""

    epochs: int
    batch: int
    rate: float
    steps: int = 10_000


@dataclass(frozen=True)
class Subject:
    """A network and its two trainings.

    Attributes:
        item: shape of one item without the batch axis.
        classes: width of the last axis of the answers.
        answer: shape of one item's answer.
    """

    name: str
    about: str
    datatype: Datatype
    item: tuple[int, ...]
    answer: tuple[int, ...]
    build: Callable[[], nn.Module]
    first: Callable[[], Data]
    new: Callable[[], Data]
    training: Effort
    tuning: Effort

    @property
    def classes(self) -> int:
        return self.answer[-1]


@dataclass(frozen=True)
class Trained:
    """A subject after both trainings.

    Attributes:
        old, new: the network before and after it saw the new data.
        error_before, error_after: share of wrong answers on new data that was not trained on.
        calibration: inputs of the first training; the new ones are `new_calibration`.
    """

    subject: Subject
    old: nn.Module
    new: nn.Module
    error_before: float
    error_after: float
    calibration: NDArray[np.generic]
    new_calibration: NDArray[np.generic]


def train(subject: Subject, rows: int = 256) -> Trained:
    """Both trainings; the same on every run of one machine."""
    torch.manual_seed(7)
    first, new = subject.first(), subject.new()
    old = subject.build()
    _fit(old, first, subject.training)
    tuned = subject.build()
    tuned.load_state_dict(old.state_dict())
    before = _error(tuned, new)
    _fit(tuned, new, subject.tuning)
    return Trained(
        subject, old.eval(), tuned.eval(), before, _error(tuned, new), first.x[:rows], new.x[:rows]
    )


def subjects(quick: bool) -> tuple[Subject, ...]:
    """All of them; `quick` makes the larger two small, for a look at whether all of it works."""
    text_bytes = 60_000 if quick else 1_500_000
    many = 10_000
    width, depth, layers = (16, 96, 2) if quick else (64, 256, 4)
    image = (3, 32, 32)
    return (
        Subject(
            "digits", "the example's CNN", "FP32", (1, 8, 8), (10,),
            lambda: build_digits(channels=32, hidden=128),
            functools.partial(_digits, False), functools.partial(_digits, True),
            Effort(14, 32, 4e-3, 100 if quick else many), Effort(3, 32, 1e-4),
        ),
        Subject(
            "resnet", f"ResNet-18, {width} channels", "FP32", image, (10,),
            lambda: ResNet18(width),
            functools.partial(_images, False), functools.partial(_images, True),
            Effort(6, 64, 1e-3, 8 if quick else many), Effort(3, 64, 2e-5, 4 if quick else many),
        ),
        Subject(
            "transformer", f"byte-level transformer, {layers} layers of {depth}", "INT64",
            (CONTEXT,), (CONTEXT, 256),
            lambda: ByteTransformer(depth, layers),
            functools.partial(_text, (_FIRST_TEXT,), text_bytes),
            functools.partial(_text, _NEW_TEXT, text_bytes // 5),
            Effort(1, 32, 1e-3, 30 if quick else 400), Effort(1, 32, 2e-5, 10 if quick else 100),
        ),
    )  # fmt: skip


class ResNet18(nn.Module):
    """Images FP32 [n, 3, h, w] to logits FP32 [n, 10].

    Source: He et al., "Deep Residual Learning for Image Recognition", 2015, table 1.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(
                _Residual(sizes[stage] if block == 0 else sizes[stage + 1], sizes[stage + 1])
                for stage in range(4)
                for block in range(2)
            )
        )
        self.last = nn.Linear(8 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.stem(x)).mean((2, 3))
        logits: torch.Tensor = self.last(features)
        return logits


class _Residual(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        stride = 1 if fan_in == fan_out else 2
        self.way = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False), nn.BatchNorm2d(fan_out),
        )  # fmt: skip
        self.around = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.way(x) + self.around(x))


class ByteTransformer(nn.Module):
    """Bytes INT64 [n, CONTEXT] to logits FP32 [n, CONTEXT, 256] of the byte behind each."""

    def __init__(self, depth: int, layers: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, depth)
        self.places = nn.Parameter(torch.randn(CONTEXT, depth) * 0.02)
        self.layers = nn.Sequential(*(AttentionLayer(depth, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(depth)
        self.last = nn.Linear(depth, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.norm(self.layers(self.bytes(x) + self.places)))
        return logits


class AttentionLayer(nn.Module):
    """A layer of a transformer, [n, length, depth] to the same; causal ones see no later place."""

    HEADS: Final = 4

    def __init__(self, depth: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm = nn.LayerNorm(depth)
        self.mixed = nn.Linear(depth, 3 * depth)
        self.out = nn.Linear(depth, depth)
        self.way = nn.Sequential(
            nn.LayerNorm(depth), nn.Linear(depth, 4 * depth), nn.GELU(),
            nn.Linear(4 * depth, depth),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, depth = x.shape
        parts = self.mixed(self.norm(x)).reshape(batch, length, 3, self.HEADS, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, depth))
        seen: torch.Tensor = x + self.way(x)
        return seen


def _fit(module: nn.Module, data: Data, effort: Effort) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=effort.rate)
    generator = torch.Generator().manual_seed(7)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    module.train()
    done = 0
    for _ in range(effort.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(effort.batch):
            if done == effort.steps:
                return
            logits = module(x[rows])
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), y[rows].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1


def _error(module: nn.Module, data: Data) -> float:
    module.eval()
    wrong = 0
    with torch.no_grad():
        for rows in torch.arange(len(data.judged_x)).split(128):
            answers = module(torch.from_numpy(data.judged_x[rows])).argmax(-1).numpy()
            wrong += int((answers != data.judged_y[rows]).sum())
    return wrong / data.judged_y.size


@functools.cache
def _digits(turned: bool) -> Data:
    digits = load_digits()
    images = digits.images.astype(np.float32)
    if turned:
        images = ndimage.rotate(images, TURNED_DEGREES, axes=(2, 1), reshape=False, order=1)
        images = np.clip(images, 0, 16)
    order = np.random.default_rng(7).permutation(len(images))
    return _split(images[order][:, None] / np.float32(16), digits.target[order].astype(np.int64))


@functools.cache
def _images(turned: bool) -> Data:
    small = _digits(turned)

    def large(x: NDArray[np.generic]) -> NDArray[np.float32]:
        zoomed = ndimage.zoom(x, (1, 1, 4, 4), order=1)
        return np.repeat(zoomed, 3, axis=1).astype(np.float32)

    return Data(large(small.x), small.y, large(small.judged_x), small.judged_y)


@functools.cache
def _text(patterns: tuple[str, ...], at_most: int) -> Data:
    """Windows of source text; the label of each byte is the one behind it."""
    library = Path(os.__file__).parent
    files = sorted(path for pattern in patterns for path in library.glob(pattern))
    text = np.frombuffer(b"".join(path.read_bytes() for path in files)[:at_most], np.uint8)
    count = (len(text) - 1) // CONTEXT
    x = text[: count * CONTEXT].reshape(count, CONTEXT).astype(np.int64)
    y = text[1 : count * CONTEXT + 1].reshape(count, CONTEXT).astype(np.int64)
    order = np.random.default_rng(7).permutation(count)
    return _split(x[order], y[order])


def _split(x: NDArray[np.generic], y: NDArray[np.int64]) -> Data:
    kept = int(TRAIN_SHARE * len(x))
    return Data(x[:kept], y[:kept], x[kept:], y[kept:])
