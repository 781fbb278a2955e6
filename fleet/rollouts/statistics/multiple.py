"""Many tests, one false-alarm rate.

A rollout may be stopped by any gate of any wave, so each gets a part of the whole rate: wave 1 one
half, wave 2 one quarter, and so on.  Most goes to the wave that meets a bad version first; and no
matter how many waves there are, the parts never exceed the whole.  Within a wave the hypotheses
are corrected by Holm's step-down procedure, which holds whatever they have to do with each other.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure"; splitting a level over
stages: Bauer and Köhne 1994, DeMets and Lan 1994.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def wave_level(false_alarm: float, wave: int) -> float:
    """The part of a rollout's false-alarm rate that wave `wave` (from 0) may use up."""
    return false_alarm / 2.0 ** (wave + 1)


def holm(p_values: Mapping[Key, float], level: float) -> frozenset[Key]:
    """The hypotheses that are rejected when any wrong rejection is to have probability `level`."""
    rejected: list[Key] = []
    for done, key in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        if not p_values[key] <= level / (len(p_values) - done):
            break
        rejected.append(key)
    return frozenset(rejected)
