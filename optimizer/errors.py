"""Errors of the optimizer.

OptimizerError            base of all of them; always one clear line
├── ConfigError           a file that a person wrote is wrong; names the file and the line
├── UnknownProfile        no hardware profile of that name
├── UnknownRecipe         no recipe of that name
├── ExportFailed          the trained network does not become a usable ONNX file
├── RecipeFailed          a recipe cannot be applied to this network
├── BadCalibration        the rows that quantisers take their ranges from do not stand for the data
├── TrainingFailed        a network cannot be trained: no finite loss, no logits, foreign weights
├── DeriveFailed          no further member can be derived from this one
├── EvaluationFailed      the pipeline's answers cannot be judged (no scores, wrong count)
├── DiskFull              there is no room for what is made; finished work is kept
├── BadRows               rows do not fit a network, or cannot tell its variants apart
└── BudgetNotMet          no variant of a profile meets its budget; names the nearest miss

SearchInterrupted         a KeyboardInterrupt that says what is kept
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class OptimizerError(Exception):
    """Something the caller or the person behind it can act upon."""


class ConfigError(OptimizerError):
    """A configuration file is wrong.

    Attributes:
        path: the file as given by the caller.
        line: counted from 1.
    """

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path.name}:{line}: {message}")
        self.path = path
        self.line = line
        self.message = message


class UnknownProfile(OptimizerError):
    """No hardware profile of that name."""


class UnknownRecipe(OptimizerError):
    """No recipe of that name."""


class ExportFailed(OptimizerError):
    """The trained network does not become a usable ONNX file."""


class RecipeFailed(OptimizerError):
    """A recipe cannot be applied to this network."""


class BadCalibration(OptimizerError):
    """The rows that quantisers take their ranges from do not stand for the data."""


class TrainingFailed(OptimizerError):
    """A network cannot be trained, or not be found to train further."""


class DeriveFailed(OptimizerError):
    """No further member can be derived from this one."""


class EvaluationFailed(OptimizerError):
    """The pipeline's answers cannot be compared with the labels."""


class BadRows(OptimizerError):
    """Rows for a network that do not fit it, or that it cannot be judged by."""


class DiskFull(OptimizerError):
    """There is no room for what is made."""

    @classmethod
    def at(cls, path: Path) -> DiskFull:
        return cls(
            f"the disk of {path} is full; what is finished is kept: make room and start again"
        )


class SearchInterrupted(KeyboardInterrupt):
    """Somebody stopped a search; the message is one line on how to go on."""


class BudgetNotMet(OptimizerError):
    """No variant of a profile meets its budget; the message names the nearest miss."""

    def __init__(self, profile: str, message: str) -> None:
        super().__init__(message)
        self.profile = profile


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'budget'?"`, or all known names where none is near, or nothing."""
    options = sorted(set(known))
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    if 0 < len(options) <= 12:
        return f"; known are {', '.join(options)}"
    return ""
