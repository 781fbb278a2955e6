"""Built-in checkers: check.finite, range, shape, brightness, blur, outlier, energy.

A checker refuses the whole batch when one item is unfit; `Rejected.reason` is the slug that is
counted.  Thresholds are asked so that NaN is refused.  Where a tensor is named only that one is
looked at, else all that hold numbers.
"""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_agent.pipeline.errors import Rejected
from edge_agent.pipeline.outlier import Gaussian
from edge_agent.pipeline.selection import Layout, image_axes, names, numeric, only
from edge_agent.pipeline.steps import checker
from edge_agent.runtime.session import Array, Tensors

_LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue.  Source: ITU-R BT.601."""


@checker("check.finite")
def check_finite(tensors: Tensors, *, tensor: str = "") -> None:
    """Refuse NaN and infinity in floating-point tensors ("not_finite")."""
    for name in names(tensors, tensor):
        array = tensors[name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Rejected("not_finite", f"{name!r} holds NaN or infinity")


@checker("check.range")
def check_range(tensors: Tensors, *, min: float, max: float, tensor: str = "") -> None:
    """Refuse values outside of [min, max] ("out_of_range")."""
    for name, array in numeric(tensors, tensor):
        if not (array.min() >= min and array.max() <= max):
            raise Rejected("out_of_range", f"{name!r} leaves [{min:g}, {max:g}]")


@checker("check.shape")
def check_shape(tensors: Tensors, *, shape: list[int], tensor: str = "") -> None:
    """Refuse items of another shape ("wrong_shape").

    Args:
        shape: of one item, without the batch axis; -1 is any length.
    """
    for name in names(tensors, tensor):
        actual = tensors[name].shape[1:]
        if len(actual) != len(shape) or any(
            wanted not in (-1, length) for wanted, length in zip(shape, actual, strict=True)
        ):
            raise Rejected(
                "wrong_shape", f"an item of {name!r} has shape {list(actual)}, expected {shape}"
            )


@checker("check.brightness")
def check_brightness(tensors: Tensors, *, min: float, max: float, tensor: str = "") -> None:
    """Refuse items whose mean value lies below `min` ("too_dark") or above `max` ("too_bright").

    Both in the units that the tensor has here: 0…255 before `image.to_float`, 0…1 after.
    """
    for name, array in numeric(tensors, tensor):
        means = array.reshape(len(array), -1).mean(axis=1, dtype=np.float64)
        if not means.min() >= min:
            raise Rejected("too_dark", f"{name!r} has a mean of {means.min():g}, least is {min:g}")
        if not means.max() <= max:
            raise Rejected("too_bright", f"{name!r} has a mean of {means.max():g}, most is {max:g}")


@checker("check.blur")
def check_blur(tensors: Tensors, *, min: float, layout: Layout = "HWC", tensor: str = "") -> None:
    """Refuse images whose sharpness lies below `min` ("blurred").

    The sharpness grows with the square of the values: 0…255 gives 65,025 times that of 0…1.
    """
    for name, array in numeric(tensors, tensor):
        least = sharpness(array, layout).min()
        if not least >= min:
            raise Rejected("blurred", f"{name!r} has a sharpness of {least:g}, least is {min:g}")


@checker("check.outlier")
def check_outlier(
    tensors: Tensors,
    *,
    reference: Gaussian,
    max: Annotated[float, Field(gt=0)],
    tensor: str = "",
) -> None:
    """Refuse items far from the training data ("out_of_distribution").

    Args:
        reference: what the training data look like at this point of the pipeline; see `outlier`.
        max: largest Mahalanobis distance that is answered.
    """
    name = only(tensors, tensor, "tensor")
    distance = reference.distance(tensors[name]).max()
    if not distance <= max:
        raise Rejected(
            "out_of_distribution", f"{name!r} has a distance of {distance:g}, most is {max:g}"
        )


@checker("check.energy")
def check_energy(
    tensors: Tensors,
    *,
    max: float,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    logits: str = "",
) -> None:
    """Refuse items of which the network is sure of nothing ("out_of_distribution").

    Stands behind the model.

    Args:
        max: highest energy that is answered; what was trained on has low ones.
        logits: name of the logits [n, classes]; empty takes the network's only output.
    """
    highest = energy(tensors[only(tensors, logits, "logits")], temperature).max()
    if not highest <= max:
        raise Rejected("out_of_distribution", f"the energy is {highest:g}, most is {max:g}")


def sharpness(array: Array, layout: Layout = "HWC") -> NDArray[np.float64]:
    """Variance of the Laplacian of each image, [n]; colour is turned to luma before.

    The outermost pixels, which lack a neighbour, are left out; without any left it is 0.

    Source: J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    image_axes(array, layout)
    grey = _luma(array, layout)
    if min(grey.shape[1:]) < 3:
        return np.zeros(len(grey))
    laplacian = (
        grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    ) - 4 * grey[:, 1:-1, 1:-1]
    return np.asarray(
        laplacian.reshape(len(grey), -1).var(axis=1, dtype=np.float64), dtype=np.float64
    )


def energy(logits: Array, temperature: float = 1.0) -> NDArray[np.float64]:
    """−T·log Σ exp(logit/T) of each row of [n, classes], [n].

    Source: W. Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, eq. 4.
    """
    scaled = logits.astype(np.float64) / temperature
    most = scaled.max(axis=1)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which is refused
        total = np.exp(scaled - most[:, None]).sum(axis=1)
    return np.asarray(-temperature * (most + np.log(total)), dtype=np.float64)


def _luma(array: Array, layout: Layout) -> NDArray[np.float32]:
    """[n, height, width]; three channels weighted as the eye does, others alike."""
    values = array.astype(np.float32, copy=False)
    if values.ndim == 3:
        return values
    channels = np.moveaxis(values, 3 if layout == "HWC" else 1, 0)
    if len(channels) != len(_LUMA):
        return np.asarray(channels.mean(axis=0), dtype=np.float32)
    red, green, blue = (
        channel * np.float32(weight) for channel, weight in zip(channels, _LUMA, strict=True)
    )
    return np.asarray(red + green + blue, dtype=np.float32)
