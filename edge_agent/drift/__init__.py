"""Drift: mergeable summaries of what a stream looks like, and one test against a reference.

Owns the signals, their sums, Hotelling's T² and its calibrated threshold.  Drift is not harm: what
follows from it is decided in the cloud.  Only uniformly drawn samples may be fed to it; samples
picked by uncertainty raise an alarm on every stream.
"""

from __future__ import annotations

from edge_agent.drift.errors import DriftError, TooFewSignals, UnreadableSummary
from edge_agent.drift.hotelling import MIN_REFERENCE, hotelling, null_statistics, null_threshold
from edge_agent.drift.reference import (
    MAX_REFERENCE_ROWS,
    Reference,
    read_reference,
    write_reference,
)
from edge_agent.drift.signals import NAMES, SIGNALS, signals
from edge_agent.drift.summary import Summary

__all__ = [
    "MAX_REFERENCE_ROWS",
    "MIN_REFERENCE",
    "NAMES",
    "SIGNALS",
    "DriftError",
    "Reference",
    "Summary",
    "TooFewSignals",
    "UnreadableSummary",
    "hotelling",
    "null_statistics",
    "null_threshold",
    "read_reference",
    "signals",
    "write_reference",
]
