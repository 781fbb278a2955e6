"""BF16 and float32: the upper half of a float32 is the BF16 that is nearest towards zero.

numpy has no BF16.  Inside the agent such a tensor is a float32 array, which holds each of its
values exactly; only a transport and a runtime know the two bytes.

Source: Intel, "BFLOAT16 Hardware Numerics Definition" (rounding to nearest, ties to even).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_agent.runtime.session import Array

_HALF_BITS: Final = np.uint32(16)
_BELOW_HALF: Final = np.uint32(0x7FFF)
_ONE: Final = np.uint32(1)
_QUIET: Final = np.uint32(0x40)


def from_bfloat16(bits: Array) -> Array:
    """BF16 bit patterns, uint16 of any shape, as float32; exact."""
    return (bits.astype(np.uint32) << _HALF_BITS).view(np.float32)


def to_bfloat16(values: Array) -> Array:
    """float32 of any shape as BF16 bit patterns, uint16: nearest, ties to even.

    What is too large becomes infinite; NaN stays NaN.

    Raises:
        ValueError: `values` are not float32.
    """
    if values.dtype != np.float32:
        raise ValueError(f"a BF16 tensor is float32 here, not {values.dtype}")
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    upper = bits >> _HALF_BITS
    rounded = (bits + _BELOW_HALF + (upper & _ONE)) >> _HALF_BITS
    return np.where(np.isnan(values), upper | _QUIET, rounded).astype(np.uint16)
