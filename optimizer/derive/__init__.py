"""Deriving members: smaller or better networks made from trained ones, before any recipe.

distil      a smaller member learns from the largest one's answers
prune       channels that matter least are taken out, and the rest is trained again

A derived member goes through all recipes like a member of the family.  Registered by name with a
typed config, as recipes are; see `registry`.
"""

from __future__ import annotations

from optimizer.derive import distil, prune
from optimizer.derive.registry import (
    Choice,
    Derivation,
    DeriveConfig,
    DeriveContext,
    Derived,
    Sized,
    Wanted,
    derivation,
    derivations,
    find,
    planned,
)

__all__ = [
    "Choice",
    "Derivation",
    "DeriveConfig",
    "DeriveContext",
    "Derived",
    "Sized",
    "Wanted",
    "derivation",
    "derivations",
    "distil",
    "find",
    "planned",
    "prune",
]
