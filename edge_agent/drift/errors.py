"""Errors of the drift room.

DriftError
├── TooFewSignals     a statistic was asked of fewer observations than it needs
└── UnreadableSummary a stored summary or reference is damaged or of another shape
"""

from __future__ import annotations


class DriftError(ValueError):
    """Base of all errors of this room."""


class TooFewSignals(DriftError):
    """Fewer observations than the statistic needs."""


class UnreadableSummary(DriftError):
    """Stored signals or sums cannot be read."""
