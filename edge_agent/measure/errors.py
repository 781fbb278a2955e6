"""Errors of the measure room.

MeasureError
├── MeasureBusy      something else holds the machine for a measurement (operator: wait)
└── MemoryUnmeasured the child process that opens a bundle to weigh it failed (engineer)
"""

from __future__ import annotations


class MeasureError(RuntimeError):
    """Base of all errors of this room."""


class MeasureBusy(MeasureError):
    """Another process holds the machine-wide lock."""


class MemoryUnmeasured(MeasureError):
    """The memory of a bundle could not be found out."""
