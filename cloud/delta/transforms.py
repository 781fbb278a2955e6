"""The forward half of what a device undoes (`edge_agent.update.delta`).

Each takes the bytes of one piece of a tensor, old and new, and returns what bulk holds for it: a
list of parts, each with statistics of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def planes(new: bytes, width: int) -> list[bytes]:
    """The bytes of all elements by significance, lowest first."""
    elements = np.frombuffer(new, np.uint8).reshape(-1, width)
    return [elements[:, place].tobytes() for place in range(width)]


def xor(old: bytes, new: bytes, width: int) -> list[bytes]:
    """Planes of old XOR new."""
    mixed = np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)
    return planes(mixed.tobytes(), width)


def add(old: bytes, new: bytes, width: int) -> list[bytes]:
    """Planes of the zigzag residuals new − old, elements as integers of `width` bytes.

    Floats of one sign compare as their bit patterns do, so a small step is a small residual.
    """
    unsigned, signed = np.dtype(f"<u{width}"), np.dtype(f"<i{width}")
    residual = (np.frombuffer(new, unsigned) - np.frombuffer(old, unsigned)).view(signed)
    zigzag = (residual << 1) ^ (residual >> (8 * width - 1))
    return planes(zigzag.tobytes(), width)


def ternary(old: bytes, new: bytes) -> list[bytes]:
    """Single bytes' residuals as base-3 digits; see `edge_agent.update.delta`."""
    residual = (np.frombuffer(new, np.uint8) - np.frombuffer(old, np.uint8)).view(np.int8)
    step = residual.astype(np.int16)
    more = np.abs(step[step != 0]) - 1
    beyond = more[more >= 2] - 2
    return [
        _digits((np.sign(step) + 1).astype(np.uint8)),
        _digits(np.minimum(more, 2).astype(np.uint8)),
        beyond.astype(np.uint8).tobytes(),
    ]


def _digits(digits: Bytes) -> bytes:
    """Five base-3 digits a byte, the first one most significant; zeros fill the last byte."""
    padded = np.zeros(-(-len(digits) // 5) * 5, np.uint8)
    padded[: len(digits)] = digits
    powers = np.array([81, 27, 9, 3, 1], np.uint8)
    codes: Bytes = (padded.reshape(-1, 5) * powers).sum(axis=1).astype(np.uint8)
    return codes.tobytes()
