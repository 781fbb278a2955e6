"""Errors of the training room; an engineer acts on all of them.

TrainingError
├── BadFunction   a project's function is missing, or what it returns is not what it should be
└── BadData       the loaded data does not fit the project file
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base; one line."""


class BadFunction(TrainingError):
    """A function of the project is not what the project file says."""


class BadData(TrainingError):
    """The data does not fit the project file."""
