"""A share of the requests as a person writes it."""

from __future__ import annotations

import math


def parse_share(text: str) -> float:
    """ "25%" → 0.25.

    Raises:
        ValueError: anything else, or not within 0% and 100%.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / 100 if percent else math.nan
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"share {text!r} is no percentage from 0% to 100%, such as 25%")
    return share
