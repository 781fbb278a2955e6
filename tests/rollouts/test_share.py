"""Shares as a person writes them."""

from __future__ import annotations

import pytest

from fleet.rollouts.share import parse_share


@pytest.mark.parametrize(
    ("text", "share"), [("25%", 0.25), ("0%", 0.0), ("100%", 1.0), (" 0.5% ", 0.005)]
)
def test_a_percentage_is_a_share(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "0.25", "25", "-1%", "101%", "nan%", "inf%", "%", "a%"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no percentage from 0% to 100%"):
        parse_share(text)
