"""Which item is kept, and with what probability.  Pure but for the injected randomness.

Uniform: a coin for each item, whatever it is.  Uncertain: in proportion to the normalised entropy
of the scores, scaled by the running mean of the entropy so that the expected share stays at the
rate, and bounded by `MAX_BOOST` times the rate.  An item of the uniform stratum is in no other.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_agent.pipeline.classes import scores_of
from edge_agent.runtime import Array, Tensors
from edge_agent.wire.manifest import SamplingSpec
from edge_agent.wire.samples import Policy

MAX_BOOST: Final = 4.0
"""An item is kept for its uncertainty at most this many times as often as an average one."""

_MEAN_WEIGHT: Final = 0.02


@dataclass(frozen=True, slots=True)
class Kept:
    """A decision to keep: the stratum, and the probability of exactly this decision."""

    policy: Policy
    inclusion_prob: float


class Decision:
    """Decides for the items of one model version.  Not thread-safe.

    How many items come before the next one that needs a look is drawn at once, so that most
    requests cost a subtraction.
    """

    def __init__(self, spec: SamplingSpec, rng: random.Random) -> None:
        self._uniform, self._uncertain = spec.uniform_rate, max(spec.uncertain_rate, 0.0)
        self._ceiling = min(1.0, MAX_BOOST * self._uncertain)
        self._looked_at = self._uniform + (1.0 - self._uniform) * self._ceiling
        self._rng = rng
        self._mean_entropy = 0.5
        self._ahead = self._draw_ahead()

    def skip(self, count: int) -> bool:
        """Pass over the next `count` items, if none of them needs a look; else change nothing."""
        if self._ahead < count:
            return False
        self._ahead -= count
        return True

    def decide(self, outputs: Tensors, index: int) -> Kept | None:
        """Whether to keep the item `index` of a prediction.

        Args:
            outputs: of the pipeline; the scores are looked at only when they matter.
        """
        if self._ahead:
            self._ahead -= 1
            return None
        self._ahead = self._draw_ahead()
        draw = self._rng.random() * self._looked_at
        if draw < self._uniform:
            return Kept("uniform", self._uniform)
        draw = (draw - self._uniform) / (1.0 - self._uniform)  # uniform below the ceiling
        # the draw does not depend on the item, so the mean over these is the mean over all
        entropy = normalised_entropy(scores_of(outputs, index))
        if entropy is None:
            return None
        share = min(self._ceiling, self._uncertain * entropy / max(self._mean_entropy, 1e-3))
        self._mean_entropy += _MEAN_WEIGHT * (entropy - self._mean_entropy)
        if draw >= share:
            return None
        return Kept("uncertain", (1.0 - self._uniform) * share)

    def _draw_ahead(self) -> int:
        """Items before the next one that is looked at: geometric, as if each had its own coin."""
        if self._looked_at >= 1.0:
            return 0
        if self._looked_at <= 0.0:
            return sys.maxsize
        return int(math.log(1.0 - self._rng.random()) / math.log1p(-self._looked_at))


def normalised_entropy(scores: Array | None) -> float | None:
    """Entropy of class scores in units of its maximum, 0…1; None where they are no distribution.

    Args:
        scores: [classes], non-negative; scaled to sum to one.
    """
    if scores is None or scores.ndim != 1 or scores.size < 2:
        return None
    p = scores.astype(np.float64)
    total = float(p.sum())
    if not math.isfinite(total) or total <= 0 or float(p.min()) < 0:
        return None
    p = p[p > 0] / total
    return float(-(p * np.log(p)).sum() / math.log(scores.size))
