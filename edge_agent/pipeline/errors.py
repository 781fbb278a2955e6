"""Errors of the pipeline room.

PipelineError
├── InputError          the tensors do not fit the interface (client)
│   └── TaskError       a body of the task route, or a row of a data set, is no such input
│       ├── BadJson     no JSON, another form, or a value that does not fit (client)
│       ├── BadImage    no image, a damaged one, or one of too many bits (client)
│       ├── ImageTooLarge      more pixels than the manifest allows (client)
│       └── ImagesUnavailable  nothing here decodes images (operator: install the extra)
├── DatasetError        a data set cannot be read at all (user)
│   └── ParquetUnavailable     nothing here reads Parquet (operator: install the extra)
├── Rejected            a checker refused the request, with a reason (client)
├── StepError           a step cannot be found, configured or run (engineer)
│   ├── UnknownStep     no step has this name
│   ├── DuplicateStep   two steps of one scope have the same name
│   ├── StepConfigError a config does not fit its step, or the order makes no sense
│   ├── CodeNotLoadable a project's step file does not run
│   └── StepFailed      a step raised, or returned something that is no answer
└── GoldenMismatch      the known answers are not reproduced (operator: do not serve this)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

_MAX_GUESSED_CHARS: Final = 200
"""Looking for what is close to a longer name takes a client's megabytes too much time."""


class PipelineError(Exception):
    """Base of all errors of this room."""


class InputError(PipelineError, ValueError):
    """The tensors of a request do not fit the interface."""


class TaskError(InputError):
    """A body of the task route cannot be turned into the pipeline's inputs."""


class BadJson(TaskError):
    """No JSON, JSON of another form, or a value that does not fit its datatype."""


class BadImage(TaskError):
    """No image, a damaged one, or one that 8 bits per channel cannot hold."""


class ImageTooLarge(TaskError):
    """More pixels than the manifest allows; nothing was decoded."""


class ImagesUnavailable(TaskError):
    """Pillow, which decodes images, is not installed here."""


class DatasetError(PipelineError):
    """A data set is missing, damaged, or of another form than the model's inputs."""


class ParquetUnavailable(DatasetError):
    """pyarrow, which reads Parquet, is not installed here."""


class Rejected(PipelineError):
    """Raised by a checker: this request must not be answered.

    Args:
        reason: slug for counters, e.g. "out_of_range".
        detail: one line for the client; never the payload.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class StepError(PipelineError):
    """A step of the pipeline is at fault, not the request."""


class UnknownStep(StepError):
    """No step has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown step {name!r}{nearest(name, known)}")
        self.name = name


class DuplicateStep(StepError):
    """Two steps of one scope have the same name."""


class StepConfigError(StepError):
    """A step's config does not fit, or the steps stand in an impossible order."""

    def __init__(self, step: str, problem: str) -> None:
        super().__init__(f"step {step!r}: {problem}")
        self.step = step
        self.problem = problem


class CodeNotLoadable(StepError):
    """A project's step file cannot be read, compiled or executed."""


class StepFailed(StepError):
    """A step raised, or what it returned is no answer."""

    def __init__(self, step: str, problem: str) -> None:
        super().__init__(f"step {step!r} failed: {problem}")
        self.step = step


class GoldenMismatch(PipelineError):
    """The pipeline does not reproduce its known answers."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `known`, or nothing."""
    if len(name) > _MAX_GUESSED_CHARS:
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
