"""What a device lacks of its profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from edge_agent.wire.messages import Inventory
from optimizer.detection import Traits, check
from optimizer.errors import OptimizerError
from optimizer.profiles import load_profile


def profile_gaps(profile: str, inventory: Mapping[str, Any]) -> list[str]:
    """What the rule of `profile` asks for and a device lacks; the claim decides nevertheless."""
    try:
        found = load_profile(profile)
        traits = Traits.of(Inventory.model_validate(inventory))
    except (OptimizerError, ValidationError):  # the file has changed since, or nothing was told
        return []
    if found.live or found.match is None:
        return []
    return list(check(traits, found, found.match).missing)
