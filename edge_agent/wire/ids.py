"""Ids that cross the network, and the one alphabet they are written in."""

from __future__ import annotations

import re
from typing import Annotated, NewType

from pydantic import StringConstraints

DeviceId = NewType("DeviceId", str)
"""Identity of a device; equals the common name of its certificate."""

ClaimId = NewType("ClaimId", str)
ModelName = NewType("ModelName", str)
ProfileName = NewType("ProfileName", str)
RolloutId = NewType("RolloutId", str)
PredictionId = NewType("PredictionId", str)
SampleId = NewType("SampleId", str)
Sha256 = NewType("Sha256", str)
"""Lower-case hexadecimal SHA-256, 64 characters."""

SLUG_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""Names used in topics, paths and certificates: no separator, wildcard or dot can occur."""

Slug = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_SLUG = re.compile(SLUG_PATTERN)


def is_slug(text: str) -> bool:
    """Whether `text` can stand as one level of a topic or path."""
    return _SLUG.fullmatch(text) is not None  # `$` alone would let a line feed follow
