"""When queries are due.  Pure: a seed gives the same schedule on every machine."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator


def poisson(qps: float, seed: int) -> Iterator[float]:
    """Arrival times in seconds from the start, independent of one another, `qps` a second.

    Raises:
        ValueError: `qps` is not positive.
    """
    if not qps > 0:
        raise ValueError(f"qps must be positive, not {qps}")
    generator = random.Random(seed)
    at = 0.0
    while True:
        # 1 − random() lies in (0, 1], so the logarithm is finite
        at -= math.log(1.0 - generator.random()) / qps
        yield at


def order(samples: int, seed: int) -> Iterator[int]:
    """Endless indices below `samples`: every sample once in shuffled order, then again.

    Raises:
        ValueError: there are no samples.
    """
    if samples < 1:
        raise ValueError("no samples to measure with")
    generator = random.Random(seed)
    indices = list(range(samples))
    for _ in itertools.count():
        generator.shuffle(indices)
        yield from indices
