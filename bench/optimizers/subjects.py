"""Five networks, trained here on real data, at the sizes that devices run.

digits       a small CNN on scikit-learn's digits, enlarged to 64×64
resnet       ResNet-18 at 224×224 in three channels
mobilenet    a network of inverted residuals (MobileNetV2's layers, width 1) at 224×224
transformer  four encoder layers of width 256 on 128 bytes of text: which package is it from?
lstm         two layers of 128 on the same text

The two large image networks see digits on a sheet of 4×4 copies, 56×56 each.  Most of their
training sees single copies, which costs a sixteenth; the last epoch sees sheets.
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

from bench.updates.subjects import AttentionLayer, ResNet18
from edge_agent.wire.manifest import Datatype
from optimizer.family import TrainingSpec
from optimizer.fine_tuning import LabelledRows, Training

TILE: Final = 56
SHEET: Final = 4
TEXT_BYTES: Final = 128
PACKAGES: Final = ("asyncio", "email", "encodings", "idlelib", "json", "multiprocessing", "test",
                   "unittest", "xml")  # fmt: skip
INPUT: Final = "x"
SEED: Final = 7

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Data:
    """Rows by their use; the network's inputs, [n, ...]."""

    calibration: Array
    judged: Array
    labels: NDArray[np.int64]
    golden: Array
    names: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A network and where its data comes from.

    Attributes:
        item: shape of one item as it is served.
        train: rows that it is trained on, which may be smaller than what is served.
        last: rows of the size that is served, for one epoch more; `None` where `train` has it.
        data: rows that it is quantised and judged by.
    """

    name: str
    about: str
    datatype: Datatype
    item: tuple[int, ...]
    build: Callable[[], nn.Module]
    train: Callable[[], LabelledRows]
    data: Callable[[], Data]
    training: TrainingSpec
    last: Callable[[], LabelledRows] | None = None

    def trained(self) -> nn.Module:
        """The network after its training; the same on every run of one machine."""
        torch.manual_seed(SEED)
        module = self.build()
        Training(module, self.train(), self.training).run(self.training.epochs)
        if self.last is not None:
            spec = self.training.model_copy(
                update={"epochs": 1, "learning_rate": self.training.learning_rate / 4}
            )
            Training(module, self.last(), spec).run(1)
        return module.eval()


def subjects(quick: bool) -> tuple[Subject, ...]:
    """All of them; `quick` trains little, for a look at whether everything works."""
    judged = 100 if quick else 400

    def effort(epochs: int, rate: float, batch: int = 32) -> TrainingSpec:
        return TrainingSpec(
            epochs=1 if quick else epochs, batch_size=batch, learning_rate=rate, seed=SEED
        )

    text = functools.partial(_text_data, judged)
    last = functools.partial(_sheet_rows, 32 if quick else 900)
    return (
        Subject(
            "digits", "CNN, 64²", "FP32", (1, 64, 64), small_cnn,
            functools.partial(_digit_rows, 64, 1), functools.partial(_digit_data, judged),
            effort(6, 2e-3),
        ),
        Subject(
            "resnet", "ResNet-18, 224²", "FP32", (3, 224, 224), ResNet18,
            functools.partial(_digit_rows, TILE, 3), functools.partial(_sheets, judged),
            effort(4, 5e-4), last,
        ),
        Subject(
            "mobilenet", "inverted residuals, 224²", "FP32", (3, 224, 224), MobileNet,
            functools.partial(_digit_rows, TILE, 3), functools.partial(_sheets, judged),
            effort(6, 1e-3), last,
        ),
        Subject(
            "transformer", "encoder, 128 bytes", "INT64", (TEXT_BYTES,), TextTransformer,
            functools.partial(_text_rows, 600 if quick else 5000), text, effort(3, 5e-4),
        ),
        Subject(
            "lstm", "two LSTM layers, 128 bytes", "INT64", (TEXT_BYTES,), TextLstm,
            functools.partial(_text_rows, 1200 if quick else 9000), text, effort(4, 3e-3),
        ),
    )  # fmt: skip


# ── networks ─────────────────────────────────────────────────────────────────────────────────────


def small_cnn() -> nn.Module:
    """Images FP32 [n, 1, 64, 64] to logits FP32 [n, 10]."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((1, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))


class MobileNet(nn.Module):
    """Images FP32 [n, 3, h, w] to logits FP32 [n, 10].

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
        fan_in = 32
        for expand, fan_out, count, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for index in range(count):
                layers.append(_Inverted(fan_in, fan_out, expand, stride if index == 0 else 1))
                fan_in = fan_out
        self.features = nn.Sequential(*layers, _conv(fan_in, 1280, 1))
        self.last = nn.Linear(1280, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.features(x).mean((2, 3)))
        return logits


class _Inverted(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, expand: int, stride: int) -> None:
        super().__init__()
        hidden = fan_in * expand
        widen = [] if expand == 1 else [_conv(fan_in, hidden, 1)]
        self.way = nn.Sequential(
            *widen,
            _conv(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, fan_out, 1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.around = stride == 1 and fan_in == fan_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.way(x)
        return x + y if self.around else y


def _conv(fan_in: int, fan_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(fan_out),
        nn.ReLU6(),
    )


class TextTransformer(nn.Module):
    """Bytes INT64 [n, 128] to logits FP32 [n, packages]."""

    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.randn(TEXT_BYTES, width) * 0.02)
        self.layers = nn.Sequential(*(AttentionLayer(width, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, len(PACKAGES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.norm(self.layers(self.bytes(x) + self.places))
        logits: torch.Tensor = self.last(seen.mean(1))
        return logits


class TextLstm(nn.Module):
    """Bytes INT64 [n, 128] to logits FP32 [n, packages]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 64)
        self.lstm = nn.LSTM(64, width, num_layers=2, batch_first=True)
        self.last = nn.Linear(width, len(PACKAGES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen, _ = self.lstm(self.bytes(x))
        logits: torch.Tensor = self.last(seen.mean(1))
        return logits


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images [1797, 8, 8] in 0..1, in an order of their own, and labels."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.images))
    images = digits.images[order].astype(np.float32) / np.float32(16)
    return images, digits.target[order].astype(np.int64)


_TRAINED: Final = 1200
_GOLDEN: Final = 64
_CALIBRATION: Final = 128


@functools.cache
def _enlarged(side: int) -> NDArray[np.float32]:
    """All digits, [1797, 1, side, side]."""
    images, _ = _digits()
    factor = side / images.shape[-1]
    large = ndimage.zoom(images, (1, factor, factor), order=1)
    return np.ascontiguousarray(large[:, None], dtype=np.float32)


def _digit_rows(side: int, channels: int) -> LabelledRows:
    images = np.repeat(_enlarged(side)[:_TRAINED], channels, axis=1)
    return LabelledRows({INPUT: images}, _digits()[1][:_TRAINED])


def _sheet_rows(count: int) -> LabelledRows:
    return LabelledRows({INPUT: _sheet(_enlarged(TILE)[:count])}, _digits()[1][:count])


def _digit_data(judged: int) -> Data:
    return _parts(_enlarged(64), judged)


@functools.cache
def _sheets(judged: int) -> Data:
    """Sheets [n, 3, 224, 224] of 4×4 copies."""
    small = _parts(_enlarged(TILE), judged)
    return Data(
        _sheet(small.calibration), _sheet(small.judged), small.labels, _sheet(small.golden),
        small.names,
    )  # fmt: skip


def _sheet(images: Array) -> Array:
    return np.tile(np.repeat(images, 3, axis=1), (1, 1, SHEET, SHEET))


def _parts(images: NDArray[np.float32], judged: int) -> Data:
    first, end = _TRAINED + _GOLDEN, _TRAINED + _GOLDEN + judged
    return Data(
        images[:_CALIBRATION], images[first:end], _digits()[1][first:end],
        images[_TRAINED:first], tuple("0123456789"),
    )  # fmt: skip


@functools.cache
def _text() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows of source text [n, 128], and which package each is from; equally many of each."""
    library = Path(os.__file__).parent
    windows, labels = [], []
    for label, package in enumerate(PACKAGES):
        files = sorted((library / package).glob("**/*.py"))
        text = np.frombuffer(b"".join(path.read_bytes() for path in files)[:600_000], np.uint8)
        rows = text[: len(text) // TEXT_BYTES * TEXT_BYTES].reshape(-1, TEXT_BYTES)
        windows.append(rows.astype(np.int64))
        labels.append(np.full(len(rows), label, np.int64))
    x, y = np.concatenate(windows), np.concatenate(labels)
    order = np.random.default_rng(SEED).permutation(len(x))
    return x[order], y[order]


def _text_rows(count: int) -> LabelledRows:
    x, y = _text()
    return LabelledRows({INPUT: x[-count:]}, y[-count:])


def _text_data(judged: int) -> Data:
    """None of these rows is trained on: training takes them from the other end."""
    x, y = _text()
    golden, first = judged + _GOLDEN, judged + _GOLDEN + _CALIBRATION
    return Data(x[golden:first], x[:judged], y[:judged], x[judged:golden], PACKAGES)
