"""What a comparison found, before all of them are corrected together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fleet.rollouts.model import DeviceFigures

POOLED = "all profiles"

Strata = Mapping[str, tuple[Sequence[DeviceFigures], Sequence[DeviceFigures]]]
"""Profile → devices of the wave, devices of the control group."""

Evidence = dict[str, float | int | str | None]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One figure in one profile, or in all of them.

    Attributes:
        p_value: probability of a rise at least as clear between two equal versions.
        matters: the rise is larger than what is tolerated.
        says: the rise in words.
    """

    p_value: float
    matters: bool
    says: str
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Tested:
    """One figure.

    Attributes:
        lacks: what is missing for a comparison; empty if nothing is.
        strata: by profile, and `POOLED`.
    """

    evidence: Evidence
    lacks: str = ""
    strata: Mapping[str, Hypothesis] = field(default_factory=dict)
