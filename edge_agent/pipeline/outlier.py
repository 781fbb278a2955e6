"""How far an item lies from the training data: a Gaussian over a few cheap features of it.

The features are either the values themselves, where an item has at most `MAX_FEATURES` (a row of
measurements, an embedding that the network gives), or a summary of them: mean, spread and eight
random projections, the signals that drift is watched by.  The summary costs one small matrix
product and notices other lighting, contrast, noise or framing, not a finer change of content.

    config = fit(training_rows).model_dump()      # for `check.outlier` in the project file
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_agent.drift.signals import signals
from edge_agent.runtime.session import Array

MAX_FEATURES: Final = 64

FeatureKind = Literal["summary", "values"]
Row = Annotated[list[float], Field(min_length=1, max_length=MAX_FEATURES)]

_WITHOUT_SCORES: Final = slice(2, None)
"""The first two signals describe the model's answer, the others its input."""

_RIDGE: Final = 1e-6
"""Added to the correlations, which may be those of fewer items than features."""

_FLAT: Final = 1e-5
"""A feature that varied by less than this share of its mean is taken to vary by that much."""


class Gaussian(BaseModel):
    """Mean and covariance of the features on the training data.

    Attributes:
        mean: [k], k ≤ 64.
        covariance: [k, k], symmetric, with no negative variance in any direction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: FeatureKind = "summary"
    mean: Row
    covariance: Annotated[list[Row], Field(min_length=1, max_length=MAX_FEATURES)]

    @model_validator(mode="after")
    def _is_a_covariance(self) -> Gaussian:
        size = len(self.mean)
        if any(len(row) != size for row in self.covariance) or len(self.covariance) != size:
            raise ValueError(f"covariance must be {size}×{size}, as mean has {size} values")
        matrix = np.array(self.covariance, dtype=np.float64)
        if not (np.isfinite(matrix).all() and np.isfinite(self.mean).all()):
            raise ValueError("mean and covariance must be finite")
        if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=0.0):
            raise ValueError("covariance must be symmetric")
        if matrix.diagonal().min() < 0:
            raise ValueError("covariance has a negative variance")
        try:
            _ = self._whitening
        except np.linalg.LinAlgError:
            raise ValueError("covariance must be positive semidefinite") from None
        return self

    def distance(self, array: Array) -> NDArray[np.float64]:
        """Mahalanobis distance of each item, float64 [n].

        Source: P. C. Mahalanobis, "On the Generalised Distance in Statistics" (1936).

        Raises:
            ValueError: an item has another number of features.
        """
        values = features(array, self.features)
        if values.shape[1] != len(self.mean):
            raise ValueError(f"an item has {values.shape[1]} features, mean has {len(self.mean)}")
        whitened = (values - np.array(self.mean)) @ self._whitening
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", whitened, whitened)), dtype=np.float64)

    @cached_property
    def _whitening(self) -> NDArray[np.float64]:
        """W [k, k] with W Wᵀ = S⁻¹, up to the ridge."""
        matrix = np.array(self.covariance, dtype=np.float64)
        variances = np.diag(matrix)
        # features differ in scale by orders of magnitude, and one that never varied still counts
        least = np.maximum((_FLAT * np.array(self.mean)) ** 2, _RIDGE**2 * variances.mean() + 1e-24)
        scale = np.sqrt(np.maximum(variances, least))
        correlation = matrix / np.outer(scale, scale) + _RIDGE * np.eye(len(matrix))
        correlation[np.diag_indices_from(correlation)] = 1.0 + _RIDGE
        factor = np.linalg.cholesky(correlation)
        whitening: NDArray[np.float64] = np.linalg.inv(factor).T / scale[:, None]
        return whitening


def features(array: Array, kind: FeatureKind) -> NDArray[np.float64]:
    """The features of each item, float64 [n, k].

    Raises:
        ValueError: an item has more than `MAX_FEATURES` values.
    """
    if kind == "summary":
        return signals({"": array}, None)[:, _WITHOUT_SCORES]
    flat = array.reshape(len(array), -1)
    if flat.shape[1] > MAX_FEATURES:
        raise ValueError(
            f"an item has {flat.shape[1]} values, at most {MAX_FEATURES}; take the summary"
        )
    return np.asarray(flat, dtype=np.float64)


def fit(array: Array, kind: FeatureKind = "summary") -> Gaussian:
    """The Gaussian of training items [n, …].

    Raises:
        ValueError: too few items, or they are not finite.
    """
    values = features(array, kind)
    if len(values) <= values.shape[1]:
        raise ValueError(f"{len(values)} items are too few for {values.shape[1]} features")
    if not np.isfinite(values).all():
        raise ValueError("the items hold NaN or infinity")
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    return Gaussian(
        features=kind, mean=values.mean(axis=0).tolist(), covariance=covariance.tolist()
    )
