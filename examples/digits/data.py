"""Labelled data: 1,797 images of handwritten digits, 8×8 pixels of 0..16.

Source: the test part of "Optical Recognition of Handwritten Digits", UCI, as scikit-learn ships it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits


def load() -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """All images as `image` FP32 [n, 8, 8], and the name of each one's class."""
    digits = load_digits()
    return {"image": digits.images.astype(np.float32)}, [str(label) for label in digits.target]
