"""How many values a JSON text may hold, told before any of them becomes an object.

A few bytes of JSON make an object of dozens, and a decoder does not stop in between, so a text is
counted before it is decoded.  Every transport and the task route keep the same bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from edge_agent.wire.manifest import TensorSpec

MAX_JSON_VALUES: Final = 524_288
"""Values in the JSON of a request, unless one item of the model has more."""

_BESIDE: Final = 16_384
"""Names, shapes and parameters that may stand beside the values."""


def most_values(specs: Sequence[TensorSpec]) -> int:
    """Values that the JSON of a request may hold for a model with these inputs."""
    return max(MAX_JSON_VALUES, item_values(specs))


def item_values(specs: Sequence[TensorSpec]) -> int:
    """Values of one item, open axes counted as one."""
    return sum(math.prod(size for size in spec.shape if size >= 0) for spec in specs)


def too_many_values(text: bytes, specs: Sequence[TensorSpec]) -> int:
    """How many values `text` holds, if any request for these inputs may hold fewer; else 0."""
    most = most_values(specs) + _BESIDE
    if len(text) <= most or text.count(b",") < most:
        return 0
    count = count_values(text)
    return count if count > most else 0


def count_values(text: bytes) -> int:
    """Values in a JSON text, nested ones each for itself, by the commas outside of strings.

    It is exact for flat lists and rectangular nests without empty ones, and about right, which is
    enough for a bound, for any other text.
    """
    if b"\\" in text:  # an escaped quote ends no string
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = text.count(b'"')
    if quotes > text.count(b",") * 4 + 4:  # of no JSON: a name and a text for each comma, at most
        return quotes
    return 1 + sum([piece.count(b",") for piece in text.split(b'"')[::2]])
